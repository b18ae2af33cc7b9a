"""The steps of a batch norm whose statistics mmcv averages over processes between them (mmcv's MMSyncBN).

Inputs are (n, channels, pixels), statistics and weights (channels,). Statistics are float32 whatever the inputs are.
"""

from torch import Tensor

from .precision import widened


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Fills the mean of each channel."""
    mean.copy_(widened(input).mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Fills the mean square of each channel's distance from the given mean."""
    var.copy_((widened(input) - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Fills the output, and for the backward pass the normed input and the deviations; moves the running mean.

    The running variance is of as many pixels as ``group_size`` inputs like this one have, without bias.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((widened(input) - mean[:, None]) / std[:, None])
    output.copy_(norm if weight is None or bias is None else norm * weight[:, None] + bias[:, None])
    if running_mean is None or running_var is None:
        return
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * (count / (count - 1)) if count > 1 else var
    running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
    running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Fills the gradients of weight and bias."""
    grad_weight.copy_((grad_output * norm).sum((0, 2)))
    grad_bias.copy_(widened(grad_output).sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Fills the input's gradient. The gradients of weight and bias are the mean over the processes."""
    count = grad_output.shape[0] * grad_output.shape[2]
    through_statistics = (norm * grad_weight[:, None] + grad_bias[:, None]) / count
    grad_input.copy_((grad_output - through_statistics) * (weight / std)[:, None])
