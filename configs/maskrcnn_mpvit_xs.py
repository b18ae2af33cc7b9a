_base_ = ['./_base_/models/maskrcnn_mpvit.py', './_base_/recipes/mpvit_instance_1x.py']
model = dict(
    backbone=dict(arch='xsmall', drop_path_rate=0.1),
    neck=dict(in_channels=[128, 192, 256, 256]),
)
