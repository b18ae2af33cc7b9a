_base_ = ['./_base_/models/upernet_mpvit.py', './_base_/recipes/digits_semantic.py']
norm_cfg = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='tiny', norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[96, 176, 216, 216], channels=64, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=216, channels=64, num_classes=11, norm_cfg=norm_cfg),
)
