"""Other forms of an exported file: weights in 16 bits, 8-bit integers, OpenVINO's own format.

Each has the inputs, outputs and metadata of the file that it is made from.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from mmvit.deploy.runtime import resize

LARGE = 1024  # numbers; smaller weights stay as they are
INTEGERS = ('Conv', 'MatMul', 'Gemm')  # what computes with weights
# The last layers of mmdet's and mmseg's heads stay float, because nothing after them makes an error smaller. A layer
# that is called for each level has a number from the second on.
LAST = re.compile(
    r'/(rpn_(cls|reg)|retina_(cls|reg)|atss_(cls|reg|centerness)|fc_(cls|reg)|conv_(logits|seg)'
    r'|(cls|reg)_branches|(cls|mask)_embed)[._\d]*/'
)


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
    onnxruntime rounds as the file says. OpenVINO rounds elsewhere, and loses more: ``to_openvino`` is for it.

    Args:
        source: The exported file.
        images: RGB images (H, W, 3), uint8, for the ranges of the activations.
    """
    target, model = beside(source, 'int8'), onnx.load(source)
    with without_warnings():
        quantize_static(
            source,
            target,
            Images(inputs(model, images)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(INTEGERS),
            nodes_to_exclude=float_nodes(model),
        )
    return target


@contextmanager
def without_warnings() -> Iterator[None]:
    """Drop the warnings of onnxruntime's quantiser: they concern files that were not folded when they were written."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    root = logging.getLogger()
    root.addFilter(is_error)
    try:
        yield
    finally:
        root.removeFilter(is_error)


def float_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that would lose too much in integers."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in INTEGERS and (node.input[1] not in weights or LAST.search(node.name))
    ]


class Images(CalibrationDataReader):
    """Gives onnxruntime's quantiser one input after another."""

    def __init__(self, inputs: Iterator[dict[str, np.ndarray]]) -> None:
        self.inputs = inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def to_openvino(source: Path, images: Sequence[np.ndarray] = (), half: bool = False) -> Path:
    """A model beside this file in OpenVINO's format: NAME.xml, which is returned, and the weights in NAME.bin.

    Args:
        source: The exported file.
        images: RGB images (H, W, 3), uint8. With any, NNCF finds the ranges that activations have in them, and the
            model computes in 8-bit integers.
        half: Store the weights in 16 bits.
    """
    import openvino  # noqa: PLC0415  an extra

    target, model = source.with_suffix('.xml'), openvino.Core().read_model(source)
    if images:
        model = quantise_by_nncf(model, onnx.load(source), images)
    openvino.save_model(model, target, compress_to_fp16=half)
    return target


def quantise_by_nncf(model: Any, source: onnx.ModelProto, images: Sequence[np.ndarray]) -> Any:
    """OpenVINO's model of a file, with the products of weights in 8-bit integers.

    Raises:
        RuntimeError: NNCF cannot do it.
    """
    os.environ.setdefault('NNCF_CI', '1')  # or it reports each run to its makers
    import nncf  # noqa: PLC0415  an extra
    from nncf.quantization.advanced_parameters import QuantizationParameters  # noqa: PLC0415

    nncf.set_log_level(logging.ERROR)
    # OpenVINO makes two operators of a layer with a bias.
    stay_float = [name + end for name in float_nodes(source) for end in ('', '/WithoutBiases')]
    # By default NNCF gives each input channel of a depthwise convolution a range. It measures before the tokens become
    # a map, and takes tokens for channels there: the model would hold for one size of images only.
    one_range = QuantizationParameters(per_channel=False)
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(list(inputs(source, images))),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(stay_float, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(activations_quantization_params=one_range),
        )
    except Exception as error:  # it has kinds of its own
        raise RuntimeError(f'NNCF cannot make 8-bit integers of this model: {error}') from error


def inputs(model: onnx.ModelProto, images: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """What a file takes of each image."""
    rule = metadata_of(model).get('resize')
    for image in images:
        yield {'image': resize(image, rule).transpose(2, 0, 1)[None].astype(np.float32)}


def metadata_of(model: onnx.ModelProto) -> dict[str, Any]:
    """What an exported file says of itself."""
    return next((json.loads(entry.value) for entry in model.metadata_props if entry.key == 'mmvit'), {})


def beside(file: Path, form: str) -> Path:
    """Where another form of a file is made."""
    return file.with_stem(f'{file.stem}_{form}')
