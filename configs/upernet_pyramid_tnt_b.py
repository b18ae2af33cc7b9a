_base_ = ['./_base_/models/upernet_pyramid_tnt.py', './_base_/recipes/ade20k_160k.py']
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.2),
    decode_head=dict(in_channels=[256, 512, 1024, 1024]),
    auxiliary_head=dict(in_channels=1024),
)
