_base_ = ['./_base_/models/fpn.py', './_base_/recipes/ade20k_80k.py']
model = dict(
    backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='base_w14', drop_path_rate=0.2),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
