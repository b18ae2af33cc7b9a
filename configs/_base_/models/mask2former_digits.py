# Mask2Former cut down to the embedded data set: ten classes, at most seven objects, half the width, a third of the
# layers, and two CPU cores. The losses are Mask2Former's own.
embed_dims = 128
attention = dict(embed_dims=embed_dims, num_heads=4, dropout=0.0, batch_first=True)
ffn_cfg = dict(
    embed_dims=embed_dims,
    feedforward_channels=512,
    num_fcs=2,
    ffn_drop=0.0,
    act_cfg=dict(type='ReLU', inplace=True),
)
positional_encoding = dict(num_feats=embed_dims // 2, normalize=True)
model = dict(
    type='Mask2Former',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
    ),
    panoptic_head=dict(
        type='Mask2FormerHead',
        strides=[4, 8, 16, 32],
        feat_channels=embed_dims,
        out_channels=embed_dims,
        num_things_classes=10,
        num_stuff_classes=0,
        num_queries=20,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type='MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=32),
            act_cfg=dict(type='ReLU'),
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(self_attn_cfg=dict(**attention, num_levels=3, num_points=4), ffn_cfg=ffn_cfg),
            ),
            positional_encoding=positional_encoding,
        ),
        enforce_decoder_input_project=False,
        positional_encoding=positional_encoding,
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn_cfg),
            init_cfg=None,
        ),
        loss_cls=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=2.0,
            reduction='mean',
            class_weight=[1.0] * 10 + [0.1],
        ),
        loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=5.0),
        loss_dice=dict(
            type='DiceLoss',
            use_sigmoid=True,
            activate=True,
            reduction='mean',
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
    ),
    panoptic_fusion_head=dict(type='MaskFormerFusionHead', num_things_classes=10, num_stuff_classes=0),
    train_cfg=dict(
        num_points=1024,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='ClassificationCost', weight=2.0),
                dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type='MaskPseudoSampler'),
    ),
    test_cfg=dict(panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=50, iou_thr=0.8),
)
