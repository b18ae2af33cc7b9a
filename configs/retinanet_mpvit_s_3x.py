_base_ = ['./_base_/models/retinanet_mpvit.py', './_base_/recipes/mpvit_detection_3x.py']
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.2),
    neck=dict(in_channels=[216, 288, 288]),
)
