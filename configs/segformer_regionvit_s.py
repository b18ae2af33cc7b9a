_base_ = ['./_base_/models/segformer.py', './_base_/recipes/segformer_ade20k.py']
model = dict(
    backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='small', drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
