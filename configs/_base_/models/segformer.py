# mmseg's SegFormer head for ADE20K. A config over this one gives the backbone, and its channels to the head.
_base_ = 'mmseg::_base_/models/segformer_mit-b0.py'
data_preprocessor = dict(size=(512, 512))
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=150),
)
