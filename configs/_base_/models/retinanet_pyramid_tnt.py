# The backbone's own strides, 8 to 64, are P3 to P6; P7 is made from P6.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(_delete_=True, type='mmvit.PyramidTNT', arch='small', norm_cfg=dict(type='SyncBN')),
    neck=dict(start_level=0),
)
