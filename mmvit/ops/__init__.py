"""mmcv's compiled operators, on PyTorch and torchvision: what mmdet and mmseg use of the module ``mmcv._ext``.

mmcv-lite has all of ``mmcv.ops`` but that module; ``_mmvit_finder.py`` offers this package under its name where mmcv
has none. The functions take mmcv's arguments: outputs are tensors that the caller made, filled in place.
Nothing here may import mmvit or mmcv, for mmcv is only half imported when it asks.
"""

from typing import NoReturn

from .boxes import bbox_overlaps, nms, nms_match, softnms
from .carafe import carafe_backward, carafe_forward, carafe_naive_backward, carafe_naive_forward
from .deform_attention import ms_deform_attn_backward, ms_deform_attn_forward
from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .deform_roi_pool import deform_roi_pool_backward, deform_roi_pool_forward
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .masked_conv import masked_col2im_forward, masked_im2col_forward
from .psa_mask import psamask_backward, psamask_forward
from .roi_align import roi_align_backward, roi_align_forward
from .roi_pool import roi_pool_backward, roi_pool_forward
from .sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)

__all__ = [
    'bbox_overlaps',
    'carafe_backward',
    'carafe_forward',
    'carafe_naive_backward',
    'carafe_naive_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'deform_roi_pool_backward',
    'deform_roi_pool_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'psamask_backward',
    'psamask_forward',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
    'sync_bn_backward_data',
    'sync_bn_backward_param',
    'sync_bn_forward_mean',
    'sync_bn_forward_output',
    'sync_bn_forward_var',
]


def get_compiler_version() -> str:
    """What mmcv's ``collect_env`` reports as the compiler of its operators."""
    return 'none: the operators are those of mmvit.ops'


def get_compiling_cuda_version() -> str:
    """What mmcv's ``collect_env`` reports as the CUDA version of its operators."""
    return 'none: the operators are those of mmvit.ops'


def __getattr__(name: str):
    """A stand-in for any other operator. It lets mmcv.ops be imported and raises NotImplementedError when called."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def operator(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f'mmvit has no {name} operator: install mmcv with its compiled ops in the place of mmcv-lite'
        )

    return operator
