"""Compares the sizes of objects with the anchors and strides of a detector. Sizes are square roots of areas."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mmengine.config import Config

SHARE = 0.1  # of the objects may be smaller than a detector's smallest anchor, or larger than its largest
LONGEST = 4096  # pixels of a side: larger images rarely fit into memory


@dataclass(frozen=True)
class Sizes:
    """Sizes in the network, in pixels. A transformer has no anchors."""

    objects: list[float]
    strides: list[float]
    anchors: list[float]
    matched_by_overlap: bool  # an anchor learns the object that it covers best


def measure(content: dict, config: Config) -> Sizes:
    """The objects of data in the format of COCO, beside a config of ``detection_config``."""
    long, short = config.scale
    sides = {image['id']: (image['width'], image['height']) for image in content['images']}
    factors = {key: min(short / min(size), long / max(size)) for key, size in sides.items()}
    objects = [math.sqrt(a['bbox'][2] * a['bbox'][3]) * factors[a['image_id']] for a in content['annotations']]
    cfg = config.model.get('train_cfg') or {}
    assigner = cfg.get('rpn', cfg).get('assigner', {})
    return Sizes(objects, *find_anchors(config.model), assigner.get('type') == 'MaxIoUAssigner')


def find_anchors(model: Config) -> tuple[list[float], list[float]]:
    """Strides and sizes of a detector's anchors, in pixels; a transformer has the backbone's strides and no anchors."""
    head = model.get('rpn_head', model.bbox_head if 'bbox_head' in model else {})
    if 'anchor_generator' not in head:
        return [4 * 2**i for i in model.backbone.get('out_indices', (0, 1, 2, 3))], []
    from mmdet.registry import TASK_UTILS  # noqa: PLC0415

    generator = TASK_UTILS.build({**head.anchor_generator, '_scope_': 'mmdet'})
    corners = np.concatenate([level.numpy() for level in generator.base_anchors])
    sizes = np.sqrt((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
    return [stride[0] for stride in generator.strides], sorted(set(sizes.round(1).tolist()))


def advise(sizes: Sizes, side: tuple[int, int]) -> list[str]:
    """A sentence if more than a tenth of the objects are too small for a detector, or too large, or both.

    A detector that matches by overlap has no anchor like an object that is smaller than the smallest or larger than
    the largest. The others need objects as large as their smallest stride.

    Args:
        sizes: Of the objects and the detector.
        side: Shorter and longer side of the images in the network, in pixels.
    """
    if not sizes.objects:
        return []
    values = np.array(sizes.objects)
    what, known = ('anchor', sizes.anchors) if sizes.matched_by_overlap else ('stride', sizes.strides)
    small, large = values < min(known), values > max(known)
    is_small, is_large = small.mean() > SHARE, sizes.matched_by_overlap and large.mean() > SHARE
    too_small = f'{share(small)} are smaller than the smallest {what}, {min(known):g} pixels'
    too_large = f'{share(large)} are larger than the largest {what}, {max(known):g} pixels'
    at = f'at --size {side[0]}x{side[1]}'
    if is_small and is_large:
        return [f'warning: {too_small}, and {too_large}, {at}: no size fits both. --head atss needs no such anchors']
    if is_small:
        larger = scaled(side, min(known) / max(np.quantile(values, SHARE, method='lower'), 1))
        way = f'take --size {larger[0]}x{larger[1]}, or ' if larger[1] <= LONGEST else ''
        return [f'warning: {too_small}, {at}: {way}cut the images into parts and label these']
    if is_large:
        smaller = scaled(side, max(known) / np.quantile(values, 1 - SHARE, method='higher'), math.floor)
        return [f'warning: {too_large}, {at}: take --size {smaller[0]}x{smaller[1]}']
    return []


def share(which: np.ndarray) -> str:
    return f'{which.sum()} of {which.size} objects ({which.mean():.0%})'


def scaled(side: tuple[int, int], factor: float, rounded: Callable[[float], int] = math.ceil) -> tuple[int, int]:
    """Both sides times a factor, in multiples of 32 pixels."""
    short, long = (max(32, 32 * rounded(length * factor / 32)) for length in side)
    return short, long
