_base_ = './_base_/maskrcnn_regionvit_1x.py'
model = dict(
    backbone=dict(arch='small'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
