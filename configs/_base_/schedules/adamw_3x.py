# 36 epochs of 16 images a step with AdamW.
_base_ = './adamw_1x.py'
train_cfg = dict(max_epochs=36)
_base_.param_scheduler[1].update(end=36, milestones=[28, 34])
