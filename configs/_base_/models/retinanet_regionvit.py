# Strides 8, 16 and 32; the neck makes P6 and P7. Stage 0 is not returned: a norm for it alone would get no gradient.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='small', drop_path_rate=0.2, out_indices=(1, 2, 3)),
    neck=dict(start_level=0),
)
