# regionvit_1x.py for 36 epochs.
_base_ = './regionvit_1x.py'
train_cfg = dict(max_epochs=36)
_base_.param_scheduler[1].update(end=36, milestones=[28, 34])
