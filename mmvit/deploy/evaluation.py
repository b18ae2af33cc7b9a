"""How good an exported file is: on its config's test data, or beside another file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torchvision.ops import box_iou

from mmvit.deploy.files import size_of
from mmvit.deploy.runtime import Model, Result

SCORE = 0.3  # of the boxes that are compared
OVERLAP = 0.5  # of boxes that show the same
MAIN = ('mAP', 'mIoU', 'aAcc')  # ends of the names of metrics that are logged


def compare(
    before: Path, after: Path, config: Config, images: Sequence[np.ndarray], log: Callable[[str], None]
) -> None:
    """Log how good two files are: by the metrics of the config's test data, or if these are not there, by images.

    Args:
        before: The file that the other one was made from.
        after: The other one.
        config: Of their model.
        images: RGB images (H, W, 3), uint8.
        log: Takes a line for each.
    """
    first, second = Model(before), Model(after)
    sizes = [f'{size_of(path) / 1e6:.1f} MB' for path in (before, after)]
    try:
        for size, model in zip(sizes, (first, second), strict=True):
            main = [f'{name} {value:.4f}' for name, value in evaluate(model, config).items() if name.endswith(MAIN)]
            log(f'  {size}: {", ".join(main)}')
    except FileNotFoundError:
        log("  the config's test data are not there")
        if images:
            share = agreement(first, second, [image[..., ::-1] for image in images])
            log(f'  {" and ".join(sizes)}: {share:.1%} in common on {len(images)} images')


def evaluate(model: Model, config: Config) -> dict[str, float]:
    """The metrics that ``mim test`` would print, of an exported model.

    Args:
        model: A detector or segmenter.
        config: Of mmdet or mmseg: its test data and evaluator are used.

    Raises:
        FileNotFoundError: The data are not there.
    """
    init_default_scope(config.get('default_scope'))
    dataset = DATASETS.build(config.test_dataloader.dataset)
    evaluator = Evaluator(metrics_of(config))
    evaluator.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        put(model(sample.img_path), sample)
        evaluator.process([sample])
    return evaluator.evaluate(len(dataset))


def metrics_of(config: Config) -> list[dict]:
    """A config's metrics, without panoptic ones: no file gives what they measure."""
    metrics = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    return [metric for metric in metrics if 'Panoptic' not in metric['type']]


def put(result: Result, sample: Any) -> None:
    """Add a result to the toolbox's data of an image, as its predictions."""
    if result.classes is not None:
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(result.classes)[None])
        return
    arrays = dict(bboxes=result.boxes, scores=result.scores, labels=result.labels)
    sample.pred_instances = InstanceData(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    if result.masks is not None:
        sample.pred_instances.masks = torch.from_numpy(result.masks)


def agreement(one: Model, other: Model, images: Sequence[np.ndarray]) -> float:
    """How much two models see alike: the share of boxes in common (F1), or of pixels of one class, over all images."""
    counts = np.sum([in_common(one(image), other(image)) for image in images], axis=0)
    return counts[0] / counts[1] if counts[1] else 1.0


def in_common(one: Result, other: Result) -> tuple[float, float]:
    """What two results have in common, and how much there is: pixels, or boxes of each in the mean."""
    if one.classes is not None:
        return np.sum(one.classes == other.classes), one.classes.size
    first, second = (np.flatnonzero(result.scores >= SCORE) for result in (one, other))
    overlaps = box_iou(torch.from_numpy(one.boxes[first]), torch.from_numpy(other.boxes[second])).numpy()
    same = overlaps >= OVERLAP
    same &= one.labels[first, None] == other.labels[second]
    pairs = min(same.any(0).sum(), same.any(1).sum())
    return pairs, (len(first) + len(second)) / 2
