_base_ = './_base_/recipes/mask2former_ade20k.py'
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
    decode_head=dict(in_channels=[128, 256, 512, 512]),
)
