_base_ = ['./_base_/models/retinanet_regionvit.py', './_base_/recipes/regionvit_detection_3x.py']
model = dict(
    backbone=dict(arch='small'),
    neck=dict(in_channels=[192, 384, 768]),
)
