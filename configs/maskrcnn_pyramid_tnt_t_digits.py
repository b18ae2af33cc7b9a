_base_ = './_base_/digits.py'
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(_delete_=True, type='mmvit.PyramidTNT', arch='tiny', img_size=128, upsample=True),
    neck=dict(in_channels=[80, 160, 320, 320]),
)
