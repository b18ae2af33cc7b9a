_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='small', drop_path_rate=0.2),
)
