_base_ = ['./_base_/models/dino_digits.py', './_base_/recipes/digits_transformer.py']
model = dict(
    backbone=dict(type='mmvit.MPViT', arch='tiny', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[176, 216, 216]),
)
val_evaluator = test_evaluator = dict(metric='bbox')
