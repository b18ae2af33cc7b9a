# COCO masks (in data/coco) as RegionViT's authors trained: short side 672, long side 1120; norms do not decay.
_base_ = [
    'mmdet::_base_/datasets/coco_instance.py',
    '../schedules/adamw_1x.py',
    '../detection_runtime.py',
]
_base_.train_pipeline[2].scale = _base_.test_pipeline[1].scale = (1120, 672)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
