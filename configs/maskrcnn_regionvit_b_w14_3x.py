_base_ = ['./_base_/models/maskrcnn_regionvit.py', './_base_/recipes/regionvit_instance_3x.py']
model = dict(
    backbone=dict(arch='base_w14'),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
