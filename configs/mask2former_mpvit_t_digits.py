_base_ = ['./_base_/models/mask2former_digits.py', './_base_/recipes/digits_transformer.py']
model = dict(
    backbone=dict(type='mmvit.MPViT', arch='tiny'),
    panoptic_head=dict(in_channels=[96, 176, 216, 216]),
)
