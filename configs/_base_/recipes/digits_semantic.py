# The embedded data, and ten minutes on two CPU cores from random weights.
_base_ = ['../datasets/digits_semantic.py', '../schedules/digits.py', 'mmseg::_base_/default_runtime.py']
max_iters = 600
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=150)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, eta_min=1e-5),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=150, max_keep_ckpts=1),
    visualization=dict(type='SegVisualizationHook', interval=1),
)
randomness = dict(seed=0)
