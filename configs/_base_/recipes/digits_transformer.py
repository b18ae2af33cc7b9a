# The embedded data from random weights, for detectors with queries, which learn more slowly than Mask R-CNN.
_base_ = ['../datasets/digits_instance.py', '../schedules/digits.py', '../detection_runtime.py']
max_epochs = 7
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
_base_.param_scheduler[1].update(end=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
