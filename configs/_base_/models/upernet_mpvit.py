_base_ = 'mmseg::_base_/models/upernet_r50.py'
data_preprocessor = dict(size=(512, 512))
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(_delete_=True, type='mmvit.MPViT', arch='small', norm_cfg=dict(type='SyncBN')),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
