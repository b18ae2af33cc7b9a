_base_ = ['./retinanet_regionvit_s_w14_peg_3x.py', './_base_/detectron2.py']
model = dict(data_preprocessor=_base_.regionvit_preprocessor, **_base_.detectron2_retinanet)
