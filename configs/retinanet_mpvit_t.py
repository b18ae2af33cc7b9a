_base_ = ['./_base_/models/retinanet_mpvit.py', './_base_/recipes/mpvit_detection_1x.py']
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    neck=dict(in_channels=[176, 216, 216]),
)
