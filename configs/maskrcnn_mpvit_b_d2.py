_base_ = ['./maskrcnn_mpvit_b.py', './_base_/detectron2.py']
model = _base_.detectron2_maskrcnn
