# DINO with 4 scales on COCO for 12 epochs, as mmdet ships it. Its recipe for Swin-L has the same optimizer.
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', '../training_hooks.py']
default_hooks = dict(**_base_.training_hooks)
