# ADE20K (in data/ade) as MPViT's authors trained: 160k iterations of 8 GPUs x 2 crops of 512; every parameter decays.
_base_ = [
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_160k.py',
    'mmseg::_base_/default_runtime.py',
    '../schedules/decay_weights_only.py',
    '../training_hooks.py',
]
default_hooks = dict(**_base_.training_hooks)
train_dataloader = dict(batch_size=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
optimizer = dict(_delete_=True, type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
optim_wrapper = dict(optimizer=optimizer)
auto_scale_lr = dict(enable=False, base_batch_size=16)
