_base_ = ['./_base_/models/fpn.py', './_base_/recipes/ade20k_80k.py']
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        _delete_=True,
        type='mmvit.PyramidTNT',
        arch='small',
        upsample=True,
        drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN'),
    ),
    neck=dict(in_channels=[128, 256, 512, 512]),
)
