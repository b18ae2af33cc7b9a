_base_ = './_base_/recipes/mask2former_ade20k.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvit.MPViT', arch='small', drop_path_rate=0.2, norm_cfg=dict(type='SyncBN')),
    decode_head=dict(in_channels=[128, 216, 288, 288]),
)
