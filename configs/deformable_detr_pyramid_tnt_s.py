_base_ = './_base_/recipes/deformable_detr.py'
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(_delete_=True, type='mmvit.PyramidTNT', arch='small', norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[128, 256, 512, 512]),
)
