_base_ = './_base_/digits.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvit.MPViT', arch='tiny'),
    neck=dict(in_channels=[96, 176, 216, 216]),
)
