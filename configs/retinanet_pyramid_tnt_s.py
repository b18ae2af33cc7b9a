_base_ = ['./_base_/models/retinanet_pyramid_tnt.py', './_base_/recipes/mpvit_detection_1x.py']
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1),
    neck=dict(in_channels=[128, 256, 512, 512]),
)
