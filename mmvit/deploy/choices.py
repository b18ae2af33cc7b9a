"""What a network chooses on the way, where rounding may decide: which queries, which pixels a query looks at.

DINO selects queries by rank, and Mask2Former's queries look where the masks before are positive. Where two values are
equal but for rounding, the model in PyTorch may choose otherwise than its file, and from there on all results differ;
so do those of PyTorch with another number of threads. So the proof asks the file how it chose. Where the choice is as
good as the model's own, the model continues with it, and the results can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmvit.deploy import smaller

MASK_PROBABILITY = 0.5  # a query of Mask2Former does not look where its mask's probability is below it


class FileWithChoices:
    """An exported file that also returns how it chose.

    Args:
        path: The file.
        model: The model that it was made from.

    Attributes:
        mask_stride: As in the file's metadata.
        channels: Of an image.
    """

    def __init__(self, path: str | PathLike, model: Any) -> None:
        file = onnx.load(path)
        self.mask_stride = smaller.metadata_of(file).get('mask_stride')
        self.names = [output.name for output in file.graph.output]
        chosen = names_of_choices(file.graph, model)
        file.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chosen)
        self.session = InferenceSession(file.SerializeToString(), providers=['CPUExecutionProvider'])
        self.channels: int = self.session.get_inputs()[0].shape[1]

    def __call__(self, batch: np.ndarray) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Outputs by name, and choices in their order, for images (B, C, H, W).

        A choice is the indices (B, k), int64, of a top k, or whether the pixels of a query's mask are below one half:
        (B * heads, queries, pixels), bool.
        """
        arrays = self.session.run(None, {'image': batch})
        return dict(zip(self.names, arrays, strict=False)), arrays[len(self.names) :]


def names_of_choices(graph: onnx.GraphProto, model: Any) -> list[str]:
    """Names of a file's choices: the first top k of a detector with two stages, what a Mask2Former compares."""
    if getattr(model, 'as_two_stage', False):
        return [node.output[1] for node in graph.node if node.op_type == 'TopK'][:1]
    if type(getattr(model, 'panoptic_head', getattr(model, 'decode_head', None))).__name__ == 'Mask2FormerHead':
        return [node.output[0] for node in graph.node if node.op_type == 'Less' and node.name.startswith('/head/')]
    return []


class Following(TorchFunctionMode):
    """Within it a model chooses as its file did.

    Args:
        choices: Of the file, as :class:`FileWithChoices` returns them.

    Attributes:
        error: The largest distance of a value that the file chose otherwise from one that would be right, in standard
            deviations of all values.
    """

    def __init__(self, choices: Sequence[np.ndarray]) -> None:
        self.choices = [torch.from_numpy(choice) for choice in choices]
        self.error = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = func(*args, **(kwargs or {}))
        if not self.choices:
            return own
        if func is torch.topk:
            return self.selection(args[0], own.values)
        if func is torch.Tensor.lt and isinstance(args[1], float) and args[1] == MASK_PROBABILITY:
            return self.comparison(args[0], own)
        return own

    def selection(self, x: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Values and indices (B, k) of the file's selection from values (B, n), whose k largest are ``own``."""
        indices = self.choices.pop(0)
        values = x.gather(1, indices)
        self.note(values - own, x)
        return values, indices

    def comparison(self, x: Tensor, own: Tensor) -> Tensor:
        """Whether probabilities are below one half, of the shape of ``x``, as the file says."""
        below = self.choices.pop(0)
        self.note((x - MASK_PROBABILITY)[below != own], x)
        return below

    def note(self, differences: Tensor, x: Tensor) -> None:
        """Take differences of any shape, and the values ``x`` that they are of, into account."""
        if differences.numel():
            self.error = max(self.error, float(differences.abs().max() / x.std()))
