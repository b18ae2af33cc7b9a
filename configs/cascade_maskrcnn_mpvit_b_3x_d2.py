_base_ = ['./cascade_maskrcnn_mpvit_b_3x.py', './_base_/detectron2.py']
model = _base_.detectron2_cascade
