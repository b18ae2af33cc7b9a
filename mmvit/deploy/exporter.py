"""A model as one ONNX file for images of any size, proven before it is written.

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
from mmvit.deploy import preprocessing
from mmvit.deploy.graphs import Features, Segmenter, graph_of

OPSET = 17  # the first with LayerNormalization
EXAMPLE = (480, 640)  # height and width: every window of every network has neighbours
TASKS = {('classes',): 'semantic', ('classes', 'logits'): 'semantic', ('boxes', 'scores', 'labels'): 'detection'}
# For each format the extra of mmvit that it needs, and what this extra has. Integers in OpenVINO's need NNCF, too.
PACKAGES = {
    '.onnx': ('deploy', ['onnx', 'onnxruntime']),
    '.xml': ('openvino', ['onnx', 'onnxruntime', 'openvino']),
}
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
    """Write a model as an ONNX file, after showing that it gives what the model gives.

    The proof is of an ONNX file in float32. With ``half``, ``calibration`` or a ``path`` in OpenVINO's format another
    one is made of it, and ``log`` takes the accuracy of both.

    Args:
        model: One of mmvit's backbones, or a RetinaNet, Faster, Mask or Cascade R-CNN of mmdet, or an EncoderDecoder of
            mmseg.
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
        ValueError: The model is of a kind that cannot be exported.
        RuntimeError: The file gives something else than the model. Nothing is written.
    """
    path = Path(path)
    check_target(path, integers=bool(calibration))
    from mmvit.deploy import proof  # noqa: PLC0415  it needs onnxruntime

    graph: Any = graph_of(model, with_logits)
    config = config or getattr(model, 'cfg', None)
    metadata = describe(model, graph, config, classes, palette)
    if calibration and metadata['task'] == 'features':
        raise ValueError('8-bit integers are for detectors and segmenters: a bare backbone has no images of its own')
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export-') as folder:
        file = Path(folder) / path.with_suffix('.onnx').name
        log(f'recording {type(model).__name__}, opset {OPSET}')
        write(graph, file, metadata)
        found = proof.prove(model, file, images, log)
        if 'boxes' in graph.outputs and found < proof.ENOUGH:
            log('few boxes: the same again with a lower score threshold')
            model = proof.lenient(model)
            write(graph_of(model), file.with_stem('lenient'), metadata)
            proof.prove(model, file.with_stem('lenient'), images, log)
        for_openvino = path.suffix == '.xml'
        if half or calibration or for_openvino:
            file = another_form(file, for_openvino, config, half, calibration, log)
        size = move(file, path)
    log(f'{path}: {size / 1e6:.1f} MB')


def another_form(
    file: Path,
    for_openvino: bool,
    config: Config | None,
    half: bool,
    calibration: Sequence[np.ndarray],
    log: Callable[[str], None],
) -> Path:
    """A smaller file beside a proven one, or one in OpenVINO's format. ``log`` takes what it costs."""
    from mmvit.deploy import evaluation, smaller  # noqa: PLC0415  they need onnx and onnxruntime

    made = file
    if calibration:
        log(f'8-bit integers, by {len(calibration)} images')
    if half:
        log('weights in 16 bits')
    if for_openvino:
        made = smaller.to_openvino(made, calibration, half)
    else:
        made = smaller.quantise(made, calibration) if calibration else made
        made = smaller.halve(made) if half else made
    if config is not None:
        evaluation.compare(file, made, config, calibration, log)
    return made


def parts(path: Path) -> list[Path]:
    """The files that a model consists of. The last one is what an engine opens."""
    return [path.with_suffix('.bin'), path] if path.suffix == '.xml' else [path]


def move(model: Path, path: Path) -> int:
    """Give a finished model its name. Returns its bytes."""
    for made, target in zip(parts(model), parts(path), strict=True):
        made.replace(target)
    return sum(part.stat().st_size for part in parts(path))


def check_target(path: Path, integers: bool) -> None:
    """Check that a file of this name can be written here.

    Raises:
        ImportError: A package is missing or too old.
        ValueError: The name ends in no known format.
    """
    if path.suffix not in PACKAGES:
        raise ValueError(f'the name of the file must end in {" or ".join(PACKAGES)}, not {path.name}')
    if torch.__version__ < OLDEST_TORCH:
        raise ImportError(f'export needs PyTorch {OLDEST_TORCH} or later, not {torch.__version__}: upgrade it')
    extra, packages = PACKAGES[path.suffix]
    needed = [*packages, 'nncf'] if integers and extra == 'openvino' else packages
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ImportError(f"{path.name} needs {' and '.join(missing)}: pip install 'mmvit[{extra}]'")


def write(graph: Any, path: Path, metadata: Mapping[str, Any], size: tuple[int, int] = EXAMPLE) -> None:
    """Record a graph into an ONNX file with open sizes, by an image of this size, and put the metadata in."""
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
        return axes | {name: {0: 'found'} for name in graph.outputs}
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
    return dict(
        version=mmvit.__version__,
        task=TASKS.get(graph.outputs, 'instance'),
        classes=names,
        palette=None if colours is None or isinstance(colours, str) else [list(colour) for colour in colours],
        mean=graph.preprocessing.mean.flatten().tolist(),
        std=graph.preprocessing.std.flatten().tolist(),
        resize=preprocessing.resize_rule(config.test_dataloader.dataset.pipeline),
        mask_threshold=test_cfg.get('mask_thr_binary'),
        thresholds=dict(
            score=test_cfg.get('score_thr'),
            nms=test_cfg.get('nms', {}).get('iou_threshold'),
            max_per_image=test_cfg.get('max_per_img'),
        ),
        config=config.pretty_text,
    )


def num_classes(model: Any) -> int:
    """How many classes a detector or segmenter tells apart."""
    head = getattr(model, 'decode_head', None) or getattr(model, 'bbox_head', None) or model.roi_head.bbox_head
    heads: Any = head if isinstance(head, nn.ModuleList) else [head]
    return heads[-1].num_classes


def classes_of(config: Config) -> dict[str, Any]:
    """Names and colours of the classes of a config's test data, if it says them."""
    dataset = config.test_dataloader.dataset
    if own := dataset.get('metainfo'):
        return own  # the colours of the data set's own classes would not be theirs
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        return getattr(DATASETS.get(dataset.type), 'METAINFO', {})
