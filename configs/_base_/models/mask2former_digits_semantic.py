# Mask2Former in mmseg cut down to the embedded data set: eleven classes, images of 128x128, two CPU cores.
_base_ = '../needs_mmdet.py'
custom_imports = dict(imports='mmdet.models', allow_failed_imports=False)
width, num_heads, num_classes = 128, 4, 11
attention = dict(embed_dims=width, num_heads=num_heads, batch_first=True)
feed_forward = dict(embed_dims=width, feedforward_channels=4 * width)
positions = dict(num_feats=width // 2, normalize=True)
mask_loss = dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0)
dice_loss = dict(type='mmdet.DiceLoss', use_sigmoid=True, activate=True, naive_dice=True, eps=1.0, loss_weight=5.0)
model = dict(
    type='mmseg.EncoderDecoder',
    data_preprocessor=dict(
        type='mmseg.SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(128, 128),
        test_cfg=dict(size_divisor=32),
    ),
    decode_head=dict(
        type='mmseg.Mask2FormerHead',
        strides=[4, 8, 16, 32],
        feat_channels=width,
        out_channels=width,
        num_classes=num_classes,
        num_queries=20,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=32),
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(self_attn_cfg=dict(**attention, num_levels=3, dropout=0.0), ffn_cfg=feed_forward),
            ),
            positional_encoding=positions,
        ),
        positional_encoding=positions,
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward),
        ),
        loss_cls=dict(type='mmdet.CrossEntropyLoss', loss_weight=2.0, class_weight=[1.0] * num_classes + [0.1]),
        loss_mask=mask_loss,
        loss_dice=dice_loss,
        train_cfg=dict(
            num_points=1024,  # as many as a mask has pixels
            assigner=dict(
                type='mmdet.HungarianAssigner',
                match_costs=[
                    dict(type='mmdet.ClassificationCost', weight=2.0),
                    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
