# mmdet's, with the hooks of every recipe.
_base_ = ['mmdet::_base_/default_runtime.py', './training_hooks.py']
default_hooks = dict(**_base_.training_hooks)
