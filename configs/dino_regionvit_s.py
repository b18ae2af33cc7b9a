_base_ = './_base_/recipes/dino.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='small', out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=[192, 384, 768]),
)
