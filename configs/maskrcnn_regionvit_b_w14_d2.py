_base_ = ['./maskrcnn_regionvit_b_w14.py', './_base_/detectron2.py']
model = dict(data_preprocessor=_base_.regionvit_preprocessor, **_base_.detectron2_maskrcnn)
_base_.test_pipeline[0].imdecode_backend = _base_.test_pipeline[1].backend = 'pillow'
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
