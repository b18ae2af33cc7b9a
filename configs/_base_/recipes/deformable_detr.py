# Deformable DETR on COCO for 50 epochs as MPViT's authors ran it: its own program with one stage, without box
# refinement, and no stochastic depth.
_base_ = ['mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', '../training_hooks.py']
default_hooks = dict(**_base_.training_hooks)
