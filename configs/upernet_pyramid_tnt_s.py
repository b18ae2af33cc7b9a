_base_ = ['./_base_/models/upernet_pyramid_tnt.py', './_base_/recipes/ade20k_160k.py']
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1),
    decode_head=dict(in_channels=[128, 256, 512, 512]),
    auxiliary_head=dict(in_channels=512),
)
