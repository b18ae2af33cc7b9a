# mmseg's Semantic FPN for ADE20K. A config over this one gives the backbone, and its channels to the neck.
_base_ = 'mmseg::_base_/models/fpn_r50.py'
data_preprocessor = dict(size=(512, 512))
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    decode_head=dict(num_classes=150),
)
