# What detectron2's models do and mmdet's by default do not, for detectors that were trained there and converted
# (tools/convert_checkpoint.py). Two bases may not both define a model, so a leaf picks from here what it needs.

# A box may shrink without bound; growth is bounded in both (by 1000/16).
detectron2_deltas = dict(add_ctr_clamp=True, ctr_clamp=10**6)
# A box that overlaps several objects is given the one that it overlaps most.
detectron2_assigner = dict(type='mmvit.detectron2.MaxIoUAssigner', min_pos_iou=0.0)
detectron2_retinanet = dict(
    neck=dict(relu_before_extra_convs=True),  # before P7
    bbox_head=dict(
        type='mmvit.detectron2.RetinaHead',  # clips boxes after NMS, not before; divides losses by an average
        # The three sizes of an anchor are the outer order, the ratios the inner.
        anchor_generator=dict(scale_major=False),
        bbox_coder=dict(clip_border=False, **detectron2_deltas),
    ),
    train_cfg=dict(assigner=detectron2_assigner),
)
detectron2_cascade = dict(
    rpn_head=dict(type='mmvit.detectron2.RPNHead', bbox_coder=detectron2_deltas),  # ranks logits
    train_cfg=dict(rpn=dict(assigner=detectron2_assigner)),
)
detectron2_maskrcnn = dict(
    roi_head=dict(bbox_head=dict(type='mmvit.detectron2.Shared2FCBBoxHead', bbox_coder=detectron2_deltas)),
    **detectron2_cascade,
)
# RegionViT's detectors were trained on RGB images with the means and deviations of BGR.
regionvit_preprocessor = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395])
