_base_ = './_base_/recipes/panoptic_fpn.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='small', drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
