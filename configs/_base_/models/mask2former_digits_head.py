# Mask2Former's head cut down to the embedded data set, for mmdet and for mmseg: half the width, a third of the layers,
# images of 128x128, at most seven objects, and two CPU cores. The losses are Mask2Former's own.
width = 128
attention = dict(embed_dims=width, num_heads=4, dropout=0.0, batch_first=True)
feed_forward = dict(embed_dims=width, feedforward_channels=4 * width)
positions = dict(num_feats=width // 2, normalize=True)
mask2former_head = dict(
    strides=[4, 8, 16, 32],
    feat_channels=width,
    out_channels=width,
    num_queries=20,
    num_transformer_feat_level=3,
    pixel_decoder=dict(
        type='mmdet.MSDeformAttnPixelDecoder',
        num_outs=3,
        norm_cfg=dict(type='GN', num_groups=32),
        encoder=dict(
            num_layers=2,
            layer_cfg=dict(self_attn_cfg=dict(**attention, num_levels=3), ffn_cfg=feed_forward),
        ),
        positional_encoding=positions,
    ),
    positional_encoding=positions,
    transformer_decoder=dict(
        return_intermediate=True,
        num_layers=3,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward),
    ),
    loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0),
    loss_dice=dict(type='mmdet.DiceLoss', use_sigmoid=True, activate=True, naive_dice=True, eps=1.0, loss_weight=5.0),
)
mask2former_assignment = dict(
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
)
