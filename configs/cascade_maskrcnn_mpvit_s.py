_base_ = ['./_base_/models/cascade_maskrcnn_mpvit.py', './_base_/recipes/mpvit_instance_1x.py']
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.2),
    neck=dict(in_channels=[128, 216, 288, 288]),
)
