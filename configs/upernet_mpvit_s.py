_base_ = ['./_base_/models/upernet_mpvit.py', './_base_/recipes/ade20k_160k.py']
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.2),
    decode_head=dict(in_channels=[128, 216, 288, 288]),
    auxiliary_head=dict(in_channels=288),
)
