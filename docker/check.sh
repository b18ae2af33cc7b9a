#!/usr/bin/env bash
# Run inside an image, this shows that it works: the tests' fast part, and a Mask R-CNN trained for a few iterations.
set -euo pipefail
OMP_NUM_THREADS=1 pytest -m 'not slow'
python tools/make_digits.py data/digits --train 32 --val 4
mim train mmdet configs/maskrcnn_mpvit_t_digits.py --cfg-options train_cfg.max_epochs=1 default_hooks.logger.interval=1
