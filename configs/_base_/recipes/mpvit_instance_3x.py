# As mpvit_instance_1x.py, for 36 epochs at many sizes.
_base_ = [
    '../datasets/coco_instance.py',
    '../datasets/multi_scale.py',
    '../schedules/adamw_3x.py',
    '../detection_runtime.py',
]
_base_.train_pipeline[2] = _base_.multi_scale
# Images without boxes are kept.
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline, filter_cfg=dict(filter_empty_gt=False)))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0, norm_type=2))
