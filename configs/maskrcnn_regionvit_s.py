_base_ = ['./_base_/models/maskrcnn_regionvit.py', './_base_/recipes/regionvit_instance_1x.py']
model = dict(
    backbone=dict(arch='small'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
