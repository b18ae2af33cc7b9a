# Mask2Former on ADE20K as mmseg trains it with Swin (mask2former_swin-t_8xb2-160k_ade20k-512x512.py): 160k iterations
# of 8 GPUs x 2 crops of 512; the backbone learns at a tenth of the rate, and its norms and positions do not decay.
# R-50's file is the same without Swin's names.
_base_ = [
    '../needs_mmdet.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../schedules/swin_decay.py',
    '../training_hooks.py',
]
default_hooks = dict(**_base_.training_hooks)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
