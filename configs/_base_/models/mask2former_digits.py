# Mask2Former for the embedded data set's ten classes.
_base_ = './mask2former_digits_head.py'
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
        **_base_.mask2former_head,
        type='Mask2FormerHead',
        num_things_classes=10,
        num_stuff_classes=0,
        loss_cls=dict(type='CrossEntropyLoss', loss_weight=2.0, class_weight=[1.0] * 10 + [0.1]),
    ),
    panoptic_fusion_head=dict(type='MaskFormerFusionHead', num_things_classes=10, num_stuff_classes=0),
    train_cfg=_base_.mask2former_assignment,
    test_cfg=dict(panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=50, iou_thr=0.8),
)
