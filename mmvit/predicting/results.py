"""What is written of predictions: drawn pictures and videos, COCO's results, and maps of classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import cv2
import mmcv
import mmengine
import numpy as np
from torchvision.ops import box_convert

from mmvit.deploy.runtime import IMAGES
from mmvit.predicting.inputs import Frame, Source

STUFF = 1000  # mmdet's INSTANCE_OFFSET: a panoptic pixel is its class, and this many times the number of its instance


class Files:
    """Writes what is found, image by image, so that all before an error is kept.

    Args:
        out: Folder, which is made with the first image.
        data: Of the config, for testing. They may have an annotation file, which then gives the ids.
        classes: Names of the labels.
        draw: Makes a picture of an image and what was found in it.
    """

    def __init__(
        self,
        out: Path,
        data: Any,
        classes: Sequence[str],
        draw: Callable[[np.ndarray, Any], np.ndarray],
    ) -> None:
        known = annotation_file(data)
        self.out = out
        self.draw = draw
        self.categories = find_categories(known, classes)
        self.ids = image_ids(known, data)
        self.new_ids = count(max(self.ids.values(), default=0) + 1)
        self.images: list[dict[str, Any]] = []
        self.results: TextIO | None = None
        self.separator = '[\n'
        self.video: tuple[Source, cv2.VideoWriter] | None = None

    def __enter__(self) -> Files:
        return self

    def add(self, frame: Frame, sample: Any) -> None:
        """Write all that belongs to an image."""
        self.out.mkdir(parents=True, exist_ok=True)
        image = frame.content if isinstance(frame.content, np.ndarray) else mmcv.imread(frame.content)
        self._write_picture(frame, self.draw(image, sample))
        height, width = image.shape[:2]
        number = self._image_id(frame)
        if (classes := class_map(sample)) is not None:
            write_image(self.out / 'classes' / f'{frame.name}.png', classes)
        if 'pred_instances' in sample:
            self._write_results(coco_results(sample, number, [category['id'] for category in self.categories]))
        self.images.append({'id': number, 'file_name': frame.name, 'height': height, 'width': width})

    def _image_id(self, frame: Frame) -> int:
        """That of the annotation file. Other images, and one that comes again, get the numbers after all of these."""
        path = Path(frame.content).resolve() if isinstance(frame.content, str) else None
        return self.ids.pop(path) if path in self.ids else next(self.new_ids)

    def _write_picture(self, frame: Frame, picture: np.ndarray) -> None:
        source = frame.source
        if not source.rate:
            suffix = '' if Path(frame.name).suffix.lower() in IMAGES else '.png'
            write_image(self.out / f'{frame.name}{suffix}', picture)
            return
        if not self.video or self.video[0] is not source:
            self._end_video()
            self.video = source, open_video(self.out / source.name, source.rate, picture.shape)
        self.video[1].write(np.ascontiguousarray(picture))

    def _write_results(self, results: Iterable[dict[str, Any]]) -> None:
        """Add results to the list in the file, a line for each."""
        if self.results is None:
            self.results = open(self.out / 'predictions.json', 'w')  # noqa: SIM115  __exit__ closes it
        for result in results:
            self.results.write(self.separator + json.dumps(result))
            self.separator = ',\n'
        self.results.flush()

    def _end_video(self) -> None:
        if self.video:
            self.video[1].release()

    def __exit__(self, *_: object) -> None:
        self._end_video()
        if self.results:
            self.results.write('[]\n' if self.separator == '[\n' else '\n]\n')
            self.results.close()
        if self.images:
            content = {'images': self.images, 'annotations': [], 'categories': self.categories}
            (self.out / 'images.json').write_text(json.dumps(content))


def annotation_file(data: Any) -> Mapping[str, Any]:
    """What a data set says in COCO's format; nothing if its file is not there or has another one."""
    path = str(getattr(data, 'ann_file', ''))
    content = mmengine.load(path) if path.endswith('.json') and Path(path).is_file() else {}
    return content if isinstance(content, dict) and {'images', 'categories'} <= content.keys() else {}


def find_categories(known: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Id and name of each label, in mmdet's order: that of the file. Without a file the id is the label."""
    found = [{'id': category['id'], 'name': category['name']} for category in known.get('categories', ())]
    found = [category for category in found if category['name'] in classes]
    return found if len(found) == len(classes) else [{'id': i, 'name': name} for i, name in enumerate(classes)]


def image_ids(known: Mapping[str, Any], data: Any) -> dict[Path | None, int]:
    """The ids of the images in a file, by their paths."""
    return {path.resolve(): number for number, path in image_paths(known, data).items()}


def image_paths(known: Mapping[str, Any], data: Any) -> dict[int, Path]:
    """The paths of the images in a file, by their ids."""
    prefix = data.data_prefix if known else {}
    folder = Path(prefix.get('img') or prefix.get('img_path') or '')
    return {image['id']: folder / image['file_name'] for image in known.get('images', ())}


def coco_results(sample: Any, number: int, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    """An image's instances as COCO's results: ``bbox`` is left, top, width and height in pixels."""
    from mmdet.structures.mask import encode_mask_results  # noqa: PLC0415  only a detector has instances

    found = sample.pred_instances
    boxes = box_convert(found.bboxes, 'xyxy', 'xywh').tolist()
    masks = encode_mask_results(found.masks.numpy()) if 'masks' in found else [None] * len(boxes)
    for label, score, box, mask in zip(found.labels.tolist(), found.scores.tolist(), boxes, masks, strict=True):
        result = {'image_id': number, 'category_id': categories[label], 'bbox': box, 'score': score}
        if mask:
            result['segmentation'] = {'size': list(mask['size']), 'counts': mask['counts'].decode()}
        yield result


def class_map(sample: Any) -> np.ndarray | None:
    """(H, W) of uint8, or of uint16 if there are many classes: the class of each pixel. None: there is no such map."""
    if 'pred_sem_seg' in sample:
        classes = sample.pred_sem_seg.data[0].numpy()
    elif 'pred_panoptic_seg' in sample:
        classes = sample.pred_panoptic_seg.sem_seg[0].numpy() % STUFF
    else:
        return None
    return classes.astype(np.min_scalar_type(max(255, classes.max())))


def write_image(path: Path, image: np.ndarray) -> None:
    """Raises OSError if it cannot be written."""
    if not mmcv.imwrite(image, str(path)):
        raise OSError(f'OpenCV cannot write {path}')


def open_video(path: Path, rate: float, shape: Sequence[int]) -> cv2.VideoWriter:
    """A video of frames (H, W, 3). Raises OSError if it cannot be written."""
    path = path if path.suffix.lower() == '.mp4' else path.with_name(f'{path.name}.mp4')
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), rate, (shape[1], shape[0]))
    if not video.isOpened():
        raise OSError(f'OpenCV cannot write {path}')
    return video
