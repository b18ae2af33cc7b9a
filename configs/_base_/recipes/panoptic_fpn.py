# Panoptic FPN on COCO's things and stuff for 12 epochs. mmdet ships none for a transformer: optimizer and warm-up are
# those of its Mask R-CNN with Swin-T.
_base_ = ['mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', '../schedules/swin_decay.py', '../training_hooks.py']
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.norms_and_positions),
)
_base_.param_scheduler[0].update(end=1000)
default_hooks = dict(**_base_.training_hooks)
# Its metadata ask for NumPy 1; it works with 2.
default_hooks['check_setup'].update(needs=dict(panopticapi='--no-deps panopticapi-lite'))
