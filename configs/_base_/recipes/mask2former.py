# Mask2Former on COCO's masks for 50 epochs, with the optimizer of mmdet's recipe for Swin-S.
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../schedules/swin_decay.py',
    '../training_hooks.py',
]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
default_hooks = dict(**_base_.training_hooks)
