# As MPViT's authors ran it: Deformable DETR's own program with one stage, without box refinement.
_base_ = ['mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', './_base_/training_hooks.py']
model = dict(
    backbone=dict(_delete_=True, type='mmvit.MPViT', arch='small', out_indices=(1, 2, 3), norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[216, 288, 288]),
)
default_hooks = dict(**_base_.training_hooks)
