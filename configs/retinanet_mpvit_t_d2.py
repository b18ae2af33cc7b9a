_base_ = ['./retinanet_mpvit_t.py', './_base_/detectron2.py']
model = _base_.detectron2_retinanet
