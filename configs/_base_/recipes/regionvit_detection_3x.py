# As regionvit_detection_1x.py, for 36 epochs at short sides of 480 to 896 (1344 for the long side is our choice).
_base_ = [
    'mmdet::_base_/datasets/coco_detection.py',
    '../schedules/adamw_3x.py',
    '../detection_runtime.py',
]
_base_.train_pipeline[2] = dict(
    type='RandomChoiceResize', scales=[(short, 1344) for short in range(480, 897, 32)], keep_ratio=True
)
_base_.test_pipeline[1].scale = (1120, 672)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
