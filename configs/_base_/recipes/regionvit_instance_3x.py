# As regionvit_instance_1x.py, for 36 epochs at many sizes. Testing keeps the ratio.
_base_ = [
    '../datasets/coco_instance.py',
    '../datasets/multi_scale_regionvit.py',
    '../schedules/regionvit_3x.py',
    '../detection_runtime.py',
]
_base_.train_pipeline[2] = _base_.multi_scale_672
_base_.test_pipeline[1].scale = (1120, 672)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
