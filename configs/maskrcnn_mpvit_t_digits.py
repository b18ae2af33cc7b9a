# The demonstration: trained from random weights in ten minutes on two CPU cores.
_base_ = [
    './_base_/models/maskrcnn_digits.py',
    './_base_/datasets/digits_instance.py',
    './_base_/schedules/digits.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(_delete_=True, type='mmvit.MPViT', arch='tiny'),
    neck=dict(in_channels=[96, 176, 216, 216]),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
