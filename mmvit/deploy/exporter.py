"""A model as a file for images of any size, in ONNX or in OpenVINO's format, proven before it is written.

``torch.onnx`` has two exporters that both take the graphs of this package. This module uses the one that traces. It is
deprecated, but it takes seconds where the other takes minutes, has no smallest size, and leaves the batch open. It may
write a size into the file as a fixed number, without a warning. The proof at other sizes finds that.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

import mmvit
from mmvit.deploy import files, preprocessing
from mmvit.deploy.graphs import Features, Segmenter, graph_of

OPSET = 17  # the first with LayerNormalization
EXAMPLE = (480, 640)  # height and width: every window of every network has neighbours
TASKS = {('classes',): 'semantic', ('classes', 'logits'): 'semantic', ('boxes', 'scores', 'labels'): 'detection'}
PACKAGES = {'.onnx': ['onnx', 'onnxruntime'], '.xml': ['onnx', 'onnxruntime', 'openvino']}  # what each format needs
EXTRAS = {'.onnx': 'deploy', '.xml': 'openvino'}  # what brings them
OLDEST_TORCH = '2.13'  # 2.1 writes files that onnxruntime refuses; what lies between was not tried


def export(
    model: Any,
    path: str | os.PathLike,
    *,
    config: Config | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    with_logits: bool = False,
    images: Sequence[np.ndarray] = (),
    half: bool = False,
    calibration: Sequence[np.ndarray] = (),
    log: Callable[[str], None] = print,
) -> None:
    """Write a model as a file, after showing that it gives what the model gives.

    The proof is of an ONNX file in float32. Other forms are made from it. With ``half`` or ``calibration``, ``log``
    gets the accuracy of both.

    Args:
        model: One of mmvit's backbones, or a RetinaNet, ATSS, Faster, Mask or Cascade R-CNN, Deformable DETR, DINO or
            Mask2Former of mmdet, or an EncoderDecoder of mmseg.
        path: The file, ``*.onnx``, or ``*.xml`` in OpenVINO's format, whose weights lie beside it in ``*.bin``.
        config: Of the model: its test pipeline and its text go into the file. The default is ``model.cfg``. A backbone
            needs none.
        classes: Names of the classes. The default is what the config's test data say, or else numbers.
        palette: Their colours, RGB.
        with_logits: A segmenter returns its logits too.
        images: RGB images (H, W, 3), uint8, for the proof, beside made ones.
        half: Store the weights in 16 bits.
        calibration: RGB images (H, W, 3), uint8: then the file computes in 8-bit integers, with the ranges that
            activations have in these images.
        log: Takes a line for each step.

    Raises:
        ImportError: A package is missing or too old.
        ValueError: The model is of a kind that cannot be exported, or the file cannot be written there.
        RuntimeError: The file gives something else than the model, or NNCF cannot quantise it. Nothing is written.
    """
    path = Path(path)
    check_target(path, integers=bool(calibration))
    from mmvit.deploy import evaluation, proof  # noqa: PLC0415  they need onnxruntime

    graph: Any = graph_of(model, with_logits)
    config = config or getattr(model, 'cfg', None)
    metadata = describe(model, graph, config, classes, palette)
    if calibration and metadata['task'] == 'features':
        raise ValueError('8-bit integers are for detectors and segmenters: a bare backbone has no images of its own')
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export-') as folder:
        proven, lenient = Path(folder, 'proven.onnx'), Path(folder, 'lenient.onnx')
        log(f'recording {type(model).__name__}, opset {OPSET}')
        write(graph, proven, metadata)
        found = proof.prove(model, proven, images, log)
        if 'boxes' in graph.outputs and found < proof.ENOUGH and proof.threshold_of(model):
            log('few boxes: the same again with a lower score threshold')
            model = proof.lenient(model)
            write(graph_of(model), lenient, metadata)
            proof.prove(model, lenient, images, log)
        made = converted(proven, path.suffix, calibration, half, log)
        files.move(made, path)
        if (half or calibration) and config is not None:
            evaluation.compare(proven, path, config, [*calibration, *images], log)
    log(f'{path}: {files.size_of(path) / 1e6:.1f} MB')


def converted(
    file: Path, suffix: str, calibration: Sequence[np.ndarray], half: bool, log: Callable[[str], None]
) -> Path:
    """The file itself, or one that is made of it: smaller, or in OpenVINO's format."""
    from mmvit.deploy import smaller  # noqa: PLC0415  it needs onnx and onnxruntime

    if calibration:
        log(f'8-bit integers, by {len(calibration)} images')
    if suffix == '.xml':
        return smaller.to_openvino(file, calibration, half)
    file = smaller.quantise(file, calibration) if calibration else file
    return smaller.halve(file) if half else file


def check_target(path: Path, integers: bool) -> None:
    """Check that this environment and this folder can take a file of this name.

    Raises:
        ImportError: A package is missing or too old.
        ValueError: The name ends in no known format, nothing can be written there, or other data would be overwritten.
    """
    if path.suffix not in PACKAGES:
        raise ValueError(f'the name of the file must end in {" or ".join(PACKAGES)}, not {path.name}')
    files.check_place(path)
    if torch.__version__ < OLDEST_TORCH:
        raise ImportError(f'export needs PyTorch {OLDEST_TORCH} or later, not {torch.__version__}: upgrade it')
    needed = PACKAGES[path.suffix] + (['nncf'] if integers and path.suffix == '.xml' else [])
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ImportError(f"{path.name} needs {' and '.join(missing)}: pip install 'mmvit[{EXTRAS[path.suffix]}]'")


def write(graph: Any, path: Path, metadata: Mapping[str, Any], size: tuple[int, int] = EXAMPLE) -> None:
    """Record a graph at a size into an ONNX file with open sizes, and put the metadata in."""
    import onnx  # noqa: PLC0415  an extra

    batch = 2 if has_open_batch(graph) else 1
    image = torch.rand(batch, input_channels(graph), *size) * 255
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the tracer, on each branch over a size; the proof is what counts
        logging.getLogger('torch.onnx').setLevel(logging.ERROR)
        torch.onnx.export(
            graph,
            (image,),
            str(path),
            opset_version=OPSET,
            input_names=['image'],
            output_names=list(graph.outputs),
            dynamic_axes=open_axes(graph),
            **tracing_options(),
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {'mmvit': json.dumps(metadata)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def tracing_options() -> dict[str, Any]:
    """Arguments of ``torch.onnx.export`` that choose its tracing exporter."""
    return {'dynamo': False} if 'dynamo' in signature(torch.onnx.export).parameters else {}


def has_open_batch(graph: Any) -> bool:
    """Whether the graph takes several images at a time."""
    return isinstance(graph, Features | Segmenter)


def input_channels(graph: Any) -> int:
    return graph.backbone.in_channels if isinstance(graph, Features) else 3


def open_axes(graph: Any) -> dict[str, dict[int, str]]:
    """Names of the axes whose length the file leaves open."""
    axes = {'image': {2: 'height', 3: 'width'}}
    if not has_open_batch(graph):
        axes |= {name: {0: 'found'} for name in graph.outputs}
        if hasattr(graph, 'mask_stride'):
            axes['masks'] |= {1: 'mask_height', 2: 'mask_width'}
        return axes
    axes['image'][0] = 'batch'
    for name in graph.outputs:
        first = 1 if name == 'classes' else 2
        own = '' if isinstance(graph, Segmenter) else f'_{name}'
        axes[name] = {0: 'batch', first: f'height{own}', first + 1: f'width{own}'}
    return axes


def describe(
    model: Any,
    graph: Any,
    config: Config | None,
    classes: Sequence[str] | None,
    palette: Sequence[Sequence[int]] | None,
) -> dict[str, Any]:
    """What the file says of itself, under the name 'mmvit' (docs/deploy.md has the contract)."""
    if isinstance(graph, Features):
        return dict(version=mmvit.__version__, task='features', stages=list(model.out_indices))
    if config is None:
        raise ValueError('export needs the config of a detector or segmenter: give it, or set model.cfg')
    known: dict[str, Any] = dict(classes=classes, palette=palette) if classes else classes_of(config)
    names = list(known.get('classes') or map(str, range(num_classes(model))))
    if len(names) != num_classes(model):
        raise ValueError(f'the model has {num_classes(model)} classes, but {len(names)} names were given')
    colours = known.get('palette')
    test_cfg = getattr(model.test_cfg, 'rcnn', model.test_cfg)
    mask_stride = getattr(graph, 'mask_stride', None)  # then masks are logits
    return dict(
        version=mmvit.__version__,
        task=TASKS.get(graph.outputs, 'instance'),
        classes=names,
        palette=None if colours is None or isinstance(colours, str) else [list(colour) for colour in colours],
        mean=graph.preprocessing.mean.flatten().tolist(),
        std=graph.preprocessing.std.flatten().tolist(),
        resize=preprocessing.resize_rule(config.test_dataloader.dataset.pipeline),
        mask_stride=mask_stride,
        mask_threshold=0 if mask_stride else test_cfg.get('mask_thr_binary'),
        thresholds=dict(
            score=test_cfg.get('score_thr'),
            nms=test_cfg.get('nms', {}).get('iou_threshold'),
            max_per_image=test_cfg.get('max_per_img', test_cfg.get('max_per_image')),
        ),
        config=config.pretty_text,
    )


def num_classes(model: Any) -> int:
    """How many classes a detector or segmenter tells apart."""
    names = ('decode_head', 'bbox_head', 'panoptic_head')
    head = next((getattr(model, name) for name in names if hasattr(model, name)), None) or model.roi_head.bbox_head
    heads: Any = head if isinstance(head, nn.ModuleList) else [head]
    return heads[-1].num_classes


def classes_of(config: Config) -> dict[str, Any]:
    """Names and colours of the classes of a config's test data, if it says them."""
    dataset = config.test_dataloader.dataset
    if own := dataset.get('metainfo'):
        return own  # the colours of the data set's own classes would not be theirs
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        return getattr(DATASETS.get(dataset.type), 'METAINFO', {})
