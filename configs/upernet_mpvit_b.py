_base_ = ['./_base_/models/upernet_mpvit.py', './_base_/recipes/ade20k_160k.py']
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    decode_head=dict(in_channels=[224, 368, 480, 480]),
    auxiliary_head=dict(in_channels=480),
)
