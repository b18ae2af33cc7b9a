_base_ = ['./_base_/models/fpn_regionvit.py', './_base_/recipes/ade20k_80k.py']
model = dict(
    backbone=dict(arch='small_w14'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
