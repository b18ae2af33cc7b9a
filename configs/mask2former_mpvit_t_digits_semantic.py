_base_ = ['./_base_/models/mask2former_digits_semantic.py', './_base_/recipes/digits_semantic.py']
model = dict(backbone=dict(type='mmvit.MPViT', arch='tiny'), decode_head=dict(in_channels=[96, 176, 216, 216]))
optim_wrapper = dict(optimizer=dict(lr=5e-4))
