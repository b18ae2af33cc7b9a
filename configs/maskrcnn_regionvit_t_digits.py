_base_ = './_base_/digits.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='tiny'),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
