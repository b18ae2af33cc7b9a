# The embedded data, and twenty minutes on two CPU cores from random weights.
_base_ = [
    '../datasets/digits_semantic.py',
    '../schedules/digits.py',
    'mmseg::_base_/default_runtime.py',
    '../training_hooks.py',
]
max_iters = 1200
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=200)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, eta_min=1e-5),
]
# With gradients clipped to 1 the model finds the digits but had not begun to tell them apart after 600 iterations.
optim_wrapper = dict(optimizer=dict(lr=1.5e-3), clip_grad=None)
default_hooks = dict(
    **_base_.training_hooks,
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    visualization=dict(type='SegVisualizationHook', interval=1),
)
default_hooks['checkpoint'].update(by_epoch=False, interval=200, max_keep_ckpts=1)
randomness = dict(seed=0)
