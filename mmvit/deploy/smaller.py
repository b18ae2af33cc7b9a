"""Smaller forms of an exported file: weights in 16 bits, or 8-bit integers.

Both are ONNX files like the one that they are made from: same inputs, outputs and metadata, standard operators.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from mmvit.deploy.runtime import resize

LARGE = 1024  # numbers; smaller weights stay as they are
INTEGERS = ('Conv', 'MatMul', 'Gemm')  # what computes with weights
# The last layers of mmdet's and mmseg's heads stay float, because nothing after them makes an error smaller.
LAST = re.compile(r'/(rpn_cls|rpn_reg|retina_cls|retina_reg|fc_cls|fc_reg|conv_logits|conv_seg)/')


def halve(source: Path) -> Path:
    """A file beside this one with its large weights in float16.

    Engines compute as before: the file turns the weights back into float32.
    """
    target = beside(source, 'half')
    model = onnx.load(source)
    casts = [to_half(weights) for weights in model.graph.initializer if is_large(weights)]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return target


def is_large(weights: TensorProto) -> bool:
    """Whether a tensor is worth fewer bits, and fits into them."""
    array = numpy_helper.to_array(weights)
    return array.dtype == np.float32 and array.size >= LARGE and np.abs(array).max() < np.finfo(np.float16).max


def to_half(weights: TensorProto) -> onnx.NodeProto:
    """Make a tensor float16, under another name; the node that turns it back."""
    name, half = weights.name, numpy_helper.to_array(weights).astype(np.float16)
    weights.CopyFrom(numpy_helper.from_array(half, f'{name}_half'))
    return helper.make_node('Cast', [weights.name], [name], name=f'{name}_cast', to=TensorProto.FLOAT)


def quantise(source: Path, images: Iterable[np.ndarray]) -> Path:
    """A file beside this one whose convolutions, and products with weights, compute in 8-bit integers.

    Between them everything stays float: norms, softmax, attention's products of two activations, and what makes boxes.

    Args:
        source: The exported file.
        images: RGB images (H, W, 3), uint8, for the ranges of the activations.
    """
    target, model = beside(source, 'int8'), onnx.load(source)
    logging.disable(logging.WARNING)  # its hints concern files that were not folded when they were written
    try:
        quantize_static(
            source,
            target,
            Images(metadata_of(model).get('resize'), images),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(INTEGERS),
            nodes_to_exclude=float_nodes(model),
        )
    finally:
        logging.disable(logging.NOTSET)
    return target


def float_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that would lose too much in integers."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in INTEGERS and (node.input[1] not in weights or LAST.search(node.name))
    ]


class Images(CalibrationDataReader):
    """Gives onnxruntime's quantiser one image after another, as a file takes them."""

    def __init__(self, rule: Any, images: Iterable[np.ndarray]) -> None:
        self.inputs = iter(resize(image, rule).transpose(2, 0, 1)[None].astype(np.float32) for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.inputs, None)
        return None if image is None else {'image': image}


def metadata_of(model: onnx.ModelProto) -> dict[str, Any]:
    """What an exported file says of itself."""
    return next((json.loads(entry.value) for entry in model.metadata_props if entry.key == 'mmvit'), {})


def beside(file: Path, form: str) -> Path:
    """Where another form of a file is made."""
    return file.with_stem(f'{file.stem}_{form}')
