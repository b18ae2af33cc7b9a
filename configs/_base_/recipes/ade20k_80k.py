# ADE20K (in data/ade) for Semantic FPN: 80k iterations of 8 GPUs x 2 crops of 512. RegionViT's authors published no
# segmentation program: optimizer and schedule are PVT's, whose heads the papers compare with.
_base_ = [
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
    '../schedules/decay_weights_only.py',
    '../training_hooks.py',
]
default_hooks = dict(**_base_.training_hooks)
train_dataloader = dict(batch_size=2)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=80000)]
optimizer = dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4)
optim_wrapper = dict(optimizer=optimizer)
auto_scale_lr = dict(enable=False, base_batch_size=16)
