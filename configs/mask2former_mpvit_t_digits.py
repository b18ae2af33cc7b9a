_base_ = ['./_base_/models/mask2former_digits.py', './_base_/recipes/digits_transformer.py']
model = dict(
    backbone=dict(type='mmvit.MPViT', arch='tiny'),
    panoptic_head=dict(in_channels=[96, 176, 216, 216]),
)
# An iteration takes two thirds of DINO's.
max_epochs = 11
train_cfg = dict(max_epochs=max_epochs)
_base_.param_scheduler[1].update(end=max_epochs)
