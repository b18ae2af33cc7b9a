_base_ = ['./_base_/models/retinanet_regionvit.py', './_base_/recipes/regionvit_detection_1x.py']
model = dict(
    backbone=dict(arch='base_w14'),
    neck=dict(in_channels=[256, 512, 1024]),
)
