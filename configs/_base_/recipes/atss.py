# ATSS on COCO for 12 epochs, with the optimizer of mmdet's only ATSS on a transformer, Swin-L with DyHead.
# Strides from 8; the neck makes the levels that the backbone lacks.
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', '../schedules/swin_decay.py', '../training_hooks.py']
model = dict(neck=dict(start_level=0))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=5e-5, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.norms_and_positions),
)
default_hooks = dict(**_base_.training_hooks)
