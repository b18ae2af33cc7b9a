_base_ = ['./_base_/models/fpn.py', './_base_/recipes/ade20k_80k.py']
model = dict(
    backbone=dict(_delete_=True, type='mmvit.MPViT', arch='small', drop_path_rate=0.2, norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[128, 216, 288, 288]),
)
