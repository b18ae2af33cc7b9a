# What detectron2's models do and mmdet's by default do not, for detectors that were trained there and converted
# (tools/convert_checkpoint.py). Two bases may not both define a model, so a leaf picks from here what it needs.

# A box may shrink without bound; growth is bounded in both (by 1000/16).
detectron2_deltas = dict(add_ctr_clamp=True, ctr_clamp=10**6)
detectron2_rpn = dict(type='mmvit.detectron2.RPNHead', bbox_coder=detectron2_deltas)  # ranks logits
detectron2_retinanet = dict(
    neck=dict(relu_before_extra_convs=True),  # before P7
    bbox_head=dict(
        type='mmvit.detectron2.RetinaHead',  # clips boxes after NMS, not before
        # The three sizes of an anchor are the outer order, the ratios the inner.
        anchor_generator=dict(scale_major=False),
        bbox_coder=dict(clip_border=False, **detectron2_deltas),
    ),
)
detectron2_maskrcnn = dict(
    rpn_head=detectron2_rpn,
    roi_head=dict(bbox_head=dict(type='mmvit.detectron2.Shared2FCBBoxHead', bbox_coder=detectron2_deltas)),
)
detectron2_cascade = dict(
    rpn_head=detectron2_rpn,
    roi_head=dict(
        type='mmvit.detectron2.CascadeRoIHead',  # averages probabilities, not logits
        bbox_head=[
            dict(
                type='mmvit.detectron2.Shared2FCBBoxHead',
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[1 / centre, 1 / centre, 1 / size, 1 / size],  # mmdet rounds the last stage's
                    **detectron2_deltas,
                ),
                reg_class_agnostic=True,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
            )
            for centre, size in ((10, 5), (20, 10), (30, 15))
        ],
    ),
)
# RegionViT's detectors were trained on RGB images with the means and deviations of BGR.
regionvit_preprocessor = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395])
