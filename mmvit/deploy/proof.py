"""What an exported file gives, against what the model gives in PyTorch, at sizes that were not recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from mmvit.deploy.choices import FileWithChoices, Following
from mmvit.deploy.runtime import image_frames, paste
from mmvit.models.base import Backbone

# Height and width of the images: odd, tiny, wide, tall, and the usual size.
SIZES = ((333, 501), (33, 47), (96, 608), (640, 150), (800, 1333))
# The largest differences that pass.
BOX = 5e-3  # pixels
SCORE = 5e-5
PIXELS = 1e-4  # share of the pixels of class maps and of masks
FEATURES = 1e-4  # standard deviations of a map
TIE = 1e-6  # scores that count as equal
TIED = 0.05  # share of the boxes
ENOUGH = 20  # boxes; fewer prove little
LEAST = 1e-8  # score threshold
Arrays = Mapping[str, np.ndarray]


@dataclass
class Difference:
    """The largest difference of each kind between two results.

    Attributes:
        boxes: Coordinates, in pixels.
        scores: Of boxes.
        pixels: Share of pixels that are of another class, or in a mask of one result only.
        features: In standard deviations of a map, or of what choices are made from.
        alone: Boxes without a partner.
        tied: Pairs of boxes that are elsewhere and have equal scores: which of them NMS keeps is left open.
        found: Boxes in all.
    """

    boxes: float = 0.0
    scores: float = 0.0
    pixels: float = 0.0
    features: float = 0.0
    alone: int = 0
    tied: int = 0
    found: int = 0

    def is_small(self) -> bool:
        limits = ((self.boxes, BOX), (self.scores, SCORE), (self.pixels, PIXELS), (self.features, FEATURES))
        return self.alone == 0 and self.tied <= TIED * self.found and all(value <= limit for value, limit in limits)


def prove(
    model: Any, path: str | PathLike, images: Sequence[np.ndarray] = (), log: Callable[[str], None] = print
) -> int:
    """Show that a file gives what the model gives, for a made image of each size and for these images.

    Args:
        model: As for :func:`mmvit.deploy.exporter.export`.
        path: The file.
        images: RGB images (H, W, 3), uint8.
        log: Takes a line for each image.

    Returns:
        How many boxes were compared.

    Raises:
        RuntimeError: It does not.
    """
    file = FileWithChoices(path, model)
    boxes = 0
    enlarged = enlarging(model)
    for image in [*(made_image(*enlarged(size), file.channels) for size in SIZES), *images]:
        height, width = image.shape[:2]
        size = f'{height}x{width}'
        if enlarged((height, width)) != (height, width):
            log(f'  {size}: left out, because the model in PyTorch does not take images that small')
            continue
        difference, found = difference_for(image, file, model)
        log(f'  {size}: {in_words(difference, found)}')
        if not difference.is_small():
            raise RuntimeError(f'at {size} the file differs from the model in PyTorch: {in_words(difference, found)}')
        boxes += difference.found
    return boxes


def enlarging(model: Any) -> Callable[[tuple[int, int]], tuple[int, int]]:
    """What enlarges the size of an image, if a detector selects more queries than its maps would have pixels."""
    if not getattr(model, 'as_two_stage', False):
        return lambda size: size
    from mmvit.deploy.queries import Levels  # noqa: PLC0415  a segmenter needs no mmdet

    levels = Levels(model)
    return lambda size: levels.enlarged(*size)


def difference_for(image: np.ndarray, file: FileWithChoices, model: Any) -> tuple[Difference, Arrays]:
    """The difference between what a file and its model give for an image (H, W, C), and what the file gives."""
    found, choices = file(batch_of(image).numpy())
    with Following(choices) as following:
        expected = computed(model, image)
    difference = compare(found, expected, image.shape[:2], file.mask_stride)
    difference.features = max(difference.features, following.error)
    return difference, found


def made_image(height: int, width: int, channels: int = 3) -> np.ndarray:
    """An image (H, W, C), uint8, of soft blobs with some noise."""
    random = np.random.default_rng(height * width)
    coarse = random.uniform(0, 255, (2 + height // 40, 2 + width // 40, channels)).astype(np.float32)
    blobs = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    return np.clip(blobs + random.normal(0, 8, blobs.shape), 0, 255).astype(np.uint8)


def batch_of(image: np.ndarray) -> Tensor:
    """An image (H, W, C) as (1, C, H, W) float32."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()


@torch.no_grad()
def computed(model: Any, image: np.ndarray) -> Arrays:
    """What the model itself gives for an image (H, W, C), under the names of the file's outputs.

    Masks are (N, H, W), within the image.
    """
    model.eval()
    if isinstance(model, Backbone):
        maps = model(batch_of(image))
        return {f'stage{i}': x.numpy() for i, x in zip(model.out_indices, maps, strict=True)}
    size = image.shape[:2]
    sample = new_sample(model)(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    bgr = batch_of(image[..., ::-1].copy())[0].byte()
    data = model.data_preprocessor(dict(inputs=[bgr], data_samples=[sample]), False)
    if type(model).__name__ == 'EncoderDecoder':
        result = model.predict(data['inputs'], data['data_samples'])[0]
        return dict(classes=result.pred_sem_seg.data.numpy(), logits=result.seg_logits.data[None].numpy())
    instances = model.predict(data['inputs'], data['data_samples'], rescale=False)[0].pred_instances
    arrays = dict(boxes=instances.bboxes, scores=instances.scores, labels=instances.labels)
    return {name: array.numpy() for name, array in {**arrays, **masks_of(instances)}.items()}


def masks_of(instances: Any) -> dict[str, Tensor]:
    return dict(masks=instances.masks) if 'masks' in instances else {}


def new_sample(model: Any) -> Callable[..., Any]:
    """The toolbox's class for what belongs to an image."""
    if type(model).__name__ == 'EncoderDecoder':
        from mmseg.structures import SegDataSample  # noqa: PLC0415  one of the two toolboxes is enough

        return SegDataSample
    from mmdet.structures import DetDataSample  # noqa: PLC0415

    return DetDataSample


def compare(found: Arrays, expected: Arrays, size: tuple[int, int], mask_stride: int | None = None) -> Difference:
    """The difference between a file's outputs and what :func:`computed` gives, for an image of this size."""
    if 'boxes' in found:
        return compare_boxes(found, expected, size, mask_stride)
    difference = Difference()
    for name, array in found.items():
        if name == 'classes':
            difference.pixels = float(np.mean(array != expected[name]))
        else:
            spread = float(expected[name].std()) or 1.0
            largest = float(np.abs(array - expected[name]).max()) / spread
            difference.features = max(difference.features, largest)
    return difference


def compare_boxes(found: Arrays, expected: Arrays, size: tuple[int, int], mask_stride: int | None) -> Difference:
    if 'masks' in found:
        found = {**found, 'masks': pasted(found, size, mask_stride)}
    pairs, tied = partners(found, expected)
    alone = len(found['boxes']) + len(expected['boxes']) - 2 * (len(pairs) + tied)
    difference = Difference(alone=alone, tied=tied, found=len(pairs))
    if pairs:
        ours, theirs = (np.array(indices, int) for indices in zip(*pairs, strict=True))
        difference.boxes = float(np.abs(found['boxes'][ours] - expected['boxes'][theirs]).max())
        difference.scores = float(np.abs(found['scores'][ours] - expected['scores'][theirs]).max())
        if 'masks' in found:
            difference.pixels = float(np.mean(found['masks'][ours] != expected['masks'][theirs]))
    return difference


def pasted(found: Arrays, size: tuple[int, int], mask_stride: int | None) -> np.ndarray:
    """A file's masks (N, H, W), within an image of this size."""
    masks, boxes = found['masks'], found['boxes']
    if mask_stride:
        return paste(masks, boxes, image_frames(masks, mask_stride, np.ones(2)), size, threshold=0)
    return paste(masks, boxes, boxes, size, threshold=0.5)


def partners(found: Arrays, expected: Arrays) -> tuple[list[tuple[int, int]], int]:
    """Pairs of indices of boxes that are of one class and near in place and score, and how many others are tied.

    The order does not count: sorting leaves open which of two equal scores comes first. Of several partners in the same
    place, as masks of the whole image have, the one whose mask is most alike is taken. All masks are (N, H, W).
    """
    pairs, left = [], []
    free = set(range(len(expected['boxes'])))

    def candidates(i: int, least: float) -> dict[int, float]:
        """Free boxes that are like this one, but for their place, and how far off their scores are."""
        scores = np.abs(found['scores'][i] - expected['scores'])
        return {j: scores[j] for j in free if scores[j] <= least and found['labels'][i] == expected['labels'][j]}

    def apart(i: int, j: int) -> tuple[float, float]:
        """How far apart two boxes are, in pixels, and the share of pixels in which their masks differ."""
        pixels = float(np.mean(found['masks'][i] != expected['masks'][j])) if 'masks' in found else 0.0
        return np.abs(found['boxes'][i] - expected['boxes'][j]).max(), pixels

    for i in range(len(found['boxes'])):
        distances = {j: (*apart(i, j), score) for j, score in candidates(i, SCORE).items()}
        nearest = min(distances, key=distances.__getitem__, default=None)
        if nearest is not None and distances[nearest][0] <= BOX:
            pairs.append((i, nearest))
            free.remove(nearest)
        else:
            left.append(i)
    before = len(free)
    for i in left:
        if others := candidates(i, TIE):
            free.remove(min(others))
    return pairs, before - len(free)


def in_words(difference: Difference, found: Arrays) -> str:
    """A difference as a line."""
    if 'boxes' not in found:
        parts = [f'{difference.pixels:.1e} of the pixels'] if 'classes' in found else []
        parts += [f'{difference.features:.1e} of the spread'] if len(found) > len(parts) or difference.features else []
        return ', '.join(parts)
    words = f'{difference.found} boxes, {difference.boxes:.1e} px, score {difference.scores:.1e}'
    words += f', {difference.pixels:.1e} of the mask pixels' if 'masks' in found else ''
    words += f', choices {difference.features:.1e} of the spread' if difference.features else ''
    words += f', {difference.tied} tied' if difference.tied else ''
    return words + (f', {difference.alone} without a partner' if difference.alone else '')


def lenient(model: Any) -> nn.Module:
    """A copy of a detector whose score threshold is low enough for some boxes in a made image."""
    model = copy.deepcopy(model)
    image = made_image(*SIZES[0])
    threshold = threshold_of(model)
    while threshold > LEAST and len(computed(model, image)['boxes']) < ENOUGH:
        threshold /= 10
        set_threshold(model, threshold)
    return model


def threshold_of(model: Any) -> float:
    """A detector's score threshold. Those with queries have none: 0."""
    return model.test_cfg.get('rcnn', model.test_cfg).get('score_thr') or 0


def set_threshold(model: Any, threshold: float) -> None:
    """Give a detector a score threshold, wherever its config has one."""
    heads = [part for part in (getattr(model, 'roi_head', None), getattr(model, 'bbox_head', None)) if part]
    for config in (*(head.test_cfg for head in heads), model.test_cfg.get('rcnn', model.test_cfg)):
        if 'score_thr' in config:
            config.score_thr = threshold
