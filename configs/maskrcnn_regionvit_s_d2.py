_base_ = ['./maskrcnn_regionvit_s.py', './_base_/detectron2.py']
model = dict(data_preprocessor=_base_.regionvit_preprocessor, **_base_.detectron2_maskrcnn)
