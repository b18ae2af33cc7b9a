"""Focal loss (RetinaNet, https://arxiv.org/abs/1708.02002), with the formulas of mmcv's CUDA kernels.

Targets (n,) are classes. The weights (classes,) of the targets' classes may be empty.
"""

import torch
from torch import Tensor

from .precision import widened

TINY = torch.finfo(torch.float32).tiny  # keeps logarithms finite


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``output`` with the loss of each logit (n, classes). A target that is no class is background."""
    p = widened(input).sigmoid()
    positive = (1 - p) ** gamma * p.clamp(min=TINY).log()
    negative = p**gamma * (1 - p).clamp(min=TINY).log()
    loss = torch.where(_one_hot(target, p), -alpha * positive, (alpha - 1) * negative)
    output.copy_(loss * _weights(weight, target, loss)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``grad_input`` with the derivative of each logit's loss (n, classes)."""
    p = widened(input).sigmoid()
    positive = (1 - p) ** gamma * (1 - p - gamma * p * p.clamp(min=TINY).log())
    negative = p**gamma * (gamma * (1 - p) * (1 - p).clamp(min=TINY).log() - p)
    grad = torch.where(_one_hot(target, p), -alpha * positive, (alpha - 1) * negative)
    grad_input.copy_(grad * _weights(weight, target, grad)[:, None])


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``output`` (n,) with the loss of each row of probabilities (n, classes), zero where the target is none."""
    p = widened(input)
    at_target = _at_target(p, target)
    loss = -alpha * (1 - at_target) ** gamma * at_target.clamp(min=TINY).log()
    output.copy_(torch.where(_is_class(target, p), loss * _weights(weight, target, loss), 0))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``grad_input`` with the loss's derivative by the logits behind the probabilities ``input`` (n, classes).

    ``buff`` (n,) becomes what a row's derivatives have in common.
    """
    p = widened(input)
    at_target = _at_target(p, target)
    through_log = gamma * (1 - at_target) ** (gamma - 1) * at_target * at_target.clamp(min=TINY).log()
    common = alpha * (through_log - (1 - at_target) ** gamma)
    common = torch.where(_is_class(target, p), common * _weights(weight, target, common), 0)
    buff.copy_(common)
    grad_input.copy_(common[:, None] * (_one_hot(target, p).to(p.dtype) - p))


def _is_class(target: Tensor, p: Tensor) -> Tensor:
    return (target >= 0) & (target < p.shape[1])


def _one_hot(target: Tensor, p: Tensor) -> Tensor:
    """Whether a column of (n, classes) is the row's target."""
    return target[:, None] == torch.arange(p.shape[1], device=p.device)


def _at_target(p: Tensor, target: Tensor) -> Tensor:
    """The probability (n,) of each row's target; any where the target is no class."""
    return p.gather(1, target.clamp(0, p.shape[1] - 1)[:, None])[:, 0]


def _weights(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """The weight (n,) of each target's class. It is 1 where the target is no class: mmcv reads past the weights."""
    if weight.numel() == 0:
        return like.new_ones(len(target))
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, widened(weight)[target.clamp(0, len(weight) - 1)], 1).to(like.dtype)
