_base_ = ['./_base_/models/retinanet_regionvit.py', './_base_/recipes/regionvit_detection_1x.py']
model = dict(
    backbone=dict(arch='small_w14_peg'),
    neck=dict(in_channels=[192, 384, 768]),
)
