"""MPViT, PyramidTNT and RegionViT backbones for OpenMMLab. Importing the package registers everything in it."""

from typing import TYPE_CHECKING, Any

from mmvit.environment import check_environment, is_page_asked_for

if TYPE_CHECKING:
    from mmvit.predicting import predict as predict

__version__ = '0.1.0'

if not is_page_asked_for():
    import _mmvit_finder  # noqa: F401  (offers mmvit/ops to mmcv where no .pth file did)

    check_environment()
    # These register themselves.
    from mmvit import classifiers, conversion, hooks, models, optim, training  # noqa: F401
    from mmvit.checkpoints.safe_globals import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()


def __getattr__(name: str) -> Any:
    """``predict`` brings OpenCV and the inferencers, which nothing else needs."""
    if name != 'predict':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from mmvit.predicting import predict  # noqa: PLC0415

    return predict
