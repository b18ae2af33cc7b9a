# Mask R-CNN with an MPViT backbone; a leaf states the arch, its stochastic depth and the neck's in_channels.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
model = dict(backbone=dict(_delete_=True, type='mmvit.MPViT', arch='small', norm_cfg=dict(type='SyncBN')))
