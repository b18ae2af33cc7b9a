_base_ = ['./retinanet_mpvit_xs.py', './_base_/detectron2.py']
model = _base_.detectron2_retinanet
_base_.test_pipeline[0].imdecode_backend = _base_.test_pipeline[1].backend = 'pillow'
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
