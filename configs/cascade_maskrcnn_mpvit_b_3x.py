_base_ = ['./_base_/models/cascade_maskrcnn_mpvit.py', './_base_/recipes/mpvit_instance_3x.py']
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    neck=dict(in_channels=[224, 368, 480, 480]),
)
