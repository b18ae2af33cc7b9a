_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(_delete_=True, type='mmvit.PyramidTNT', arch='small', upsample=True, norm_cfg=dict(type='SyncBN')),
)
