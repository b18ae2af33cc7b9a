# The embedded data, a Mask R-CNN cut down to them, and ten minutes on two CPU cores from random weights.
_base_ = [
    './models/maskrcnn_digits.py',
    './datasets/digits_instance.py',
    './schedules/digits.py',
    './detection_runtime.py',
]
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
