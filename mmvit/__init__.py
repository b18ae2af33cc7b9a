"""MPViT, PyramidTNT and RegionViT backbones for OpenMMLab. Importing the package registers everything in it."""

from importlib.util import find_spec

__version__ = '0.1.0'

if find_spec('mmcv') is None:
    # Not an ImportError: mmengine swallows those while it looks a scope up, and reports a bare KeyError.
    raise RuntimeError(
        'mmvit needs mmcv or mmcv-lite and finds neither: install "mmvit[det]" or "mmvit[seg]" (mmcv with its '
        'compiled ops), or "mmvit[lite]" (mmcv-lite: the backbones alone).'
    )

from mmvit import checkpoint, classifiers, conversion, hooks, models, optim  # noqa: F401  (registers what they define)
from mmvit.safe_globals import allow_mmengine_checkpoints

allow_mmengine_checkpoints()
