_base_ = './_base_/recipes/atss.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvit.MPViT',
        arch='small',
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        norm_cfg=dict(type='SyncBN'),
    ),
    neck=dict(in_channels=[216, 288, 288]),
)
