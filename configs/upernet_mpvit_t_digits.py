_base_ = ['./_base_/models/upernet_mpvit.py', './_base_/recipes/digits_semantic.py']
norm_cfg = dict(type='BN')
head = dict(num_classes=11, norm_cfg=norm_cfg, dropout_ratio=0.0)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='tiny', norm_cfg=norm_cfg),
    decode_head=dict(
        **head,
        in_channels=[96, 176, 216, 216],
        channels=128,
        loss_decode=dict(class_weight=[0.2] + [1.0] * 10),  # nine pixels in ten are background
    ),
    auxiliary_head=dict(**head, in_channels=216, channels=64),
)
