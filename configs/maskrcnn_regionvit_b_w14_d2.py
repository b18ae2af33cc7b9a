_base_ = ['./maskrcnn_regionvit_b_w14.py', './_base_/detectron2.py']
model = dict(data_preprocessor=_base_.regionvit_preprocessor, **_base_.detectron2_maskrcnn)
