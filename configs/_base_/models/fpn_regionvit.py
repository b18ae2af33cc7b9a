_base_ = 'mmseg::_base_/models/fpn_r50.py'
data_preprocessor = dict(size=(512, 512))
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='small', drop_path_rate=0.2),
    decode_head=dict(num_classes=150),
)
