_base_ = ['./_base_/models/fpn_regionvit.py', './_base_/recipes/ade20k_80k.py']
model = dict(
    backbone=dict(arch='base_w14'),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
