_base_ = ['./_base_/models/maskrcnn_mpvit.py', './_base_/recipes/mpvit_instance_1x.py']
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    neck=dict(in_channels=[96, 176, 216, 216]),
)
