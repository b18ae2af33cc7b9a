"""MPViT, PyramidTNT and RegionViT backbones for OpenMMLab. Importing the package registers everything in it."""

from mmvit.environment import check_environment, is_page_asked_for

__version__ = '0.1.0'

if not is_page_asked_for():
    import _mmvit_finder  # noqa: F401  (offers mmvit/ops to mmcv where no .pth file did)

    check_environment()
    # These register themselves.
    from mmvit import classifiers, conversion, hooks, models, optim, training  # noqa: F401
    from mmvit.checkpoints.safe_globals import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()
