"""What is known of a trained model: from its config, from its checkpoint, and from the log beside it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmvit.publishing.settings import initial_weights, without_folders
from mmvit.training.checkpoints import INTERRUPTED

NOT_RECORDED = 'not recorded'
TIMES = ('data_time', 'time', 'step')  # beside the metrics in a log
TOOLS = ('openmim', 'setuptools')  # which compute nothing
KEPT = ('epoch', 'iter', 'seed', 'mmengine_version', 'versions')  # of a checkpoint's meta
HUB_TASKS = {  # OpenMMLab's names of the tasks, and those of the Hugging Face hub
    'Object Detection': 'object-detection',
    'Instance Segmentation': 'image-segmentation',
    'Panoptic Segmentation': 'image-segmentation',
    'Semantic Segmentation': 'image-segmentation',
}


@dataclass(frozen=True)
class Data:
    """A data set: its type, its annotations, and its images (None if it is not here)."""

    name: str
    annotations: str
    images: int | None

    def __str__(self) -> str:
        return f'{self.annotations} ({self.name})' if self.annotations else self.name


@dataclass(frozen=True)
class Record:
    """What is known of a trained model. What is not recorded anywhere is empty or None.

    Args:
        model: Name of the class.
        backbone: Such as ``MPViT tiny``.
        family: ``family_name`` of the backbone, if it is one of mmvit.
        parameters: Number of them.
        stages: Whose maps the backbone gives, from 0.
        is_rgb: Whether the network takes images in RGB order.
        task: One of ``HUB_TASKS``.
        meta: Of the checkpoint, as far as others need it.
        dataset_meta: The classes and their colours.
        training, testing: The data.
        schedule: {what: how}, in the order of a table.
        metrics: {name: value}, of the test data.
        trained_with: {package: version}.
    """

    model: str
    backbone: str
    family: str | None
    parameters: int
    stages: tuple[int, ...]
    is_rgb: bool
    task: str
    meta: dict[str, Any]
    dataset_meta: dict[str, Any]
    training: Data | None
    testing: Data | None
    schedule: dict[str, Any]
    metrics: dict[str, float]
    trained_with: dict[str, str]

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.dataset_meta.get('classes', ())]


def read_record(
    config: Config, loaded: Mapping[str, Any], checkpoint: Path, model: Any, results: Path | None
) -> Record:
    """Gather what is known.

    Args:
        config: That the model was trained with.
        loaded: The checkpoint.
        checkpoint: Its path.
        model: With its weights.
        results: A .json file with metrics, instead of the training's log.

    Raises:
        FileNotFoundError: There are no such results.
        ValueError: They are no metrics.
    """
    meta = dict(loaded.get('meta', {}))
    run = run_folder(checkpoint, meta)
    training, testing = (dataset_of(config, name) for name in ('train_dataloader', 'test_dataloader'))
    backbone = getattr(model, 'backbone', None)
    return Record(
        model=type(model).__name__,
        backbone=' '.join([type(backbone).__name__, *arch_of(config)]),
        family=getattr(backbone, 'family_name', None),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        stages=tuple(getattr(backbone, 'out_indices', ())),
        is_rgb=bool(config.model.get('data_preprocessor', {}).get('bgr_to_rgb', False)),
        task=task_of(model, config),
        meta={key: meta[key] for key in KEPT if key in meta},
        dataset_meta={**metainfo_of(config), **meta.get('dataset_meta', {})},
        training=training,
        testing=testing,
        schedule=schedule_of(config, meta, checkpoint, 'ema_state_dict' in loaded),
        metrics=read_results(results) if results else logged_metrics(config, checkpoint, meta, run),
        trained_with=training_versions(meta),
    )


def arch_of(config: Config) -> list[str]:
    arch = config.model.get('backbone', {}).get('arch')
    return [arch] if isinstance(arch, str) else []


def task_of(model: Any, config: Config) -> str:
    """The most that a model does."""
    if config.get('default_scope') == 'mmseg':
        return 'Semantic Segmentation'
    head = config.model.get('panoptic_fusion_head', {})
    if hasattr(model, 'semantic_head') or head.get('num_stuff_classes'):
        return 'Panoptic Segmentation'
    return 'Instance Segmentation' if getattr(model, 'with_mask', False) or head else 'Object Detection'


def task_of_metric(name: str, task: str) -> str:
    """A detector with masks is measured by its boxes, too."""
    words = {'bbox_': 'Object Detection', 'segm_': 'Instance Segmentation', 'PQ': 'Panoptic Segmentation'}
    return next((found for word, found in words.items() if word in name), task)


def dataset_of(config: Config, loader: str) -> Data | None:
    """A data set, with as many images as a training or test would take."""
    settings = config.get(loader) and config[loader].dataset
    if not settings:
        return None
    inner = unwrapped(settings)
    kind = class_of(inner)
    try:
        with redirect_stdout(io.StringIO()):  # of pycocotools
            images = len(DATASETS.build(inner))
    except (AssertionError, OSError, ValueError, KeyError):  # its files are elsewhere, or broken
        images = None
    prefix = inner.get('data_prefix', {})
    annotations = inner.get('ann_file') or prefix.get('seg_map_path') or prefix.get('img_path') or ''
    return Data(kind.__name__, str(without_folders(annotations)), images)


def unwrapped(settings: Any) -> Any:
    """The settings of a data set inside of those that repeat or mix it."""
    return unwrapped(settings.dataset) if 'dataset' in settings else settings


def class_of(settings: Any) -> type:
    if isinstance(settings.type, type):
        return settings.type
    with DATASETS.switch_scope_and_registry(None) as registry:  # of the config's default scope
        if found := registry.get(settings.type):
            return found
        raise KeyError(f'{settings.type} is not in the {registry.name} registry')


def metainfo_of(config: Config) -> dict[str, Any]:
    """The classes of the test data, as the config or the data set's class names them."""
    if not config.get('test_dataloader'):
        return {}
    settings = unwrapped(config.test_dataloader.dataset)
    known = getattr(class_of(settings), 'METAINFO', {})
    return {key: value for key, value in {**known, **settings.get('metainfo', {})}.items() if key != 'dataset_type'}


def schedule_of(config: Config, meta: Mapping[str, Any], checkpoint: Path, is_averaged: bool) -> dict[str, Any]:
    """What the config and the checkpoint say of the training."""
    length = config.get('train_cfg') or {}
    wrapper = config.get('optim_wrapper') or {}
    optimizer = wrapper.get('optimizer', {})
    began = [config.get('load_from'), *(file for *_, file in initial_weights(config.model))]
    counts = [f'{key} {meta[key]}' for key in ('epoch', 'iter') if meta.get(key)] if is_dated(meta, checkpoint) else []
    rows = {
        'epochs': length.get('max_epochs'),
        'iterations': length.get('max_iters'),
        'of this checkpoint': ', '.join(counts),
        'optimizer': optimizer.get('type'),
        'learning rate': optimizer.get('lr'),
        'weight decay': optimizer.get('weight_decay'),
        'images a step, for each GPU': (config.get('train_dataloader') or {}).get('batch_size'),
        'seed': meta.get('seed'),
        'began with': ', '.join(Path(file).name for file in began if file),
        'weights': "averaged (mmengine's EMAHook)" if is_averaged else None,
    }
    return {what: how for what, how in rows.items() if how not in (None, '')}


def run_folder(checkpoint: Path, meta: Mapping[str, Any]) -> Path | None:
    """The folder of the run that saved a checkpoint, beside it."""
    stamp = re.search(r'\d{8}_\d{6}$', str(meta.get('experiment_name', '')))
    folder = checkpoint.parent / stamp[0] if stamp else None
    return folder if folder and folder.is_dir() else None


def is_dated(meta: Mapping[str, Any], checkpoint: Path) -> bool:
    """Whether the epoch and iteration in a checkpoint are its own: FlexibleRunner may name a later epoch."""
    return 'mmengine_version' in meta and checkpoint.name != INTERRUPTED


def logged_metrics(config: Config, checkpoint: Path, meta: Mapping[str, Any], run: Path | None) -> dict[str, float]:
    """What the run measured when it saved the checkpoint; empty if it did not, or if the log does not tell when."""
    log = run and run / 'vis_data/scalars.json'
    by_epoch = config.get('default_hooks', {}).get('logger', {}).get('log_metric_by_epoch', True)
    is_of_epochs = bool((config.get('train_cfg') or {}).get('max_epochs'))
    if not log or not log.is_file() or by_epoch != is_of_epochs or not is_dated(meta, checkpoint):
        return {}
    step = meta.get('epoch' if by_epoch else 'iter')
    lines = [line for line in validations(log) if line['step'] == step]
    return metrics_in(lines[-1]) if lines else {}


def validations(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are of a validation: a training's have a loss."""
    for text in log.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the training was killed while it wrote
            continue
        if 'step' in line and not any('loss' in key for key in line):
            yield line


def read_results(path: Path) -> dict[str, float]:
    """The metrics in a .json file."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'--results {path} is not a .json file: {error}') from None
    metrics = metrics_in(found) if isinstance(found, dict) else {}
    if not metrics:
        raise ValueError(f'--results {path} has no metrics: give the .json file that `mim test` writes into its folder')
    return metrics


def metrics_in(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line, to four places. COCO's -1 says that there was nothing to measure."""
    return {
        name: round(value, 4)
        for name, value in line.items()
        if name not in TIMES and type(value) in (int, float) and value != -1
    }


def training_versions(meta: Mapping[str, Any]) -> dict[str, str]:
    """The packages' versions that the checkpoint names."""
    found = meta.get('versions') or {'mmengine': meta.get('mmengine_version')}
    return {name: number for name, number in found.items() if number and name not in TOOLS}
