_base_ = './_base_/maskrcnn_mpvit_1x.py'
model = dict(
    backbone=dict(arch='xsmall', drop_path_rate=0.1),
    neck=dict(in_channels=[128, 192, 256, 256]),
)
