_base_ = ['./_base_/models/retinanet_mpvit.py', './_base_/recipes/mpvit_detection_1x.py']
model = dict(
    backbone=dict(arch='xsmall', drop_path_rate=0.1),
    neck=dict(in_channels=[192, 256, 256]),
)
