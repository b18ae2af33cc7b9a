_base_ = ['./_base_/models/upernet_regionvit.py', './_base_/recipes/ade20k_160k.py']
model = dict(
    backbone=dict(arch='small'),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
