_base_ = ['./_base_/models/retinanet_mpvit.py', './_base_/recipes/mpvit_detection_1x.py']
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[368, 480, 480]),
)
