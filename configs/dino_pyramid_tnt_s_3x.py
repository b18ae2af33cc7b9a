# 36 epochs, with the steps of mmdet's recipe for Swin-L.
_base_ = './dino_pyramid_tnt_s.py'
train_cfg = dict(max_epochs=36)
_base_.param_scheduler[0].update(end=36, milestones=[27, 33])
