"""What is written of predictions: drawn pictures and videos, COCO's results, and maps of classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import cv2
import mmcv
import mmengine
import numpy as np
from mmengine.config import Config
from torchvision.ops import box_convert

from mmvit.deploy.runtime import IMAGES
from mmvit.predicting.inputs import Frame, Source, test_dataset

STUFF = 1000  # mmdet's INSTANCE_OFFSET: a panoptic pixel is its class, and this many times the number of its instance


class Files:
    """Writes what is found, image by image, so that all before an error is kept.

    Args:
        out: Folder, which is made with the first image.
        config: Its test data may have an annotation file, which then gives the ids.
        classes: Names of the labels.
        sources: All that will be predicted.
        draw: Makes a picture of an image and what was found in it.
    """

    def __init__(
        self,
        out: Path,
        config: Config,
        classes: Sequence[str],
        sources: Sequence[Source],
        draw: Callable[[np.ndarray, Any], np.ndarray],
    ) -> None:
        known = annotation_file(config)
        self.out = out
        self.draw = draw
        self.classes = classes
        self.categories = category_ids(known, classes)
        self.ids = image_ids(known, config, sources)
        self.images: list[dict[str, Any]] = []
        self.results: TextIO | None = None
        self.video: tuple[Source, cv2.VideoWriter] | None = None

    def __enter__(self) -> Files:
        return self

    def add(self, frame: Frame, sample: Any) -> None:
        """Write all that belongs to an image."""
        self.out.mkdir(parents=True, exist_ok=True)
        image = frame.content if isinstance(frame.content, np.ndarray) else mmcv.imread(frame.content)
        self._write_picture(frame, self.draw(image, sample))
        height, width = image.shape[:2]
        number = self.ids[str(frame.content)] if self.ids else len(self.images) + 1
        if (classes := class_map(sample)) is not None:
            write_image(self.out / 'classes' / f'{frame.name}.png', classes)
        if 'pred_instances' in sample:
            self._write_results(list(coco_results(sample, number, self.categories)))
        self.images.append({'id': number, 'file_name': frame.name, 'height': height, 'width': width})

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

    def _write_results(self, results: list[dict[str, Any]]) -> None:
        """Add results to the list in the file, a line for each."""
        if self.results is None:
            self.results = open(self.out / 'predictions.json', 'w')  # noqa: SIM115  __exit__ closes it
            self.separator = '[\n'
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
            names = zip(self.categories, self.classes, strict=True)
            categories = [{'id': number, 'name': name} for number, name in names]
            content = {'images': self.images, 'annotations': [], 'categories': categories}
            (self.out / 'images.json').write_text(json.dumps(content))


def annotation_file(config: Config) -> Mapping[str, Any]:
    """What the config's test data say in COCO's format; nothing if they are not there or have another one."""
    path = str(getattr(test_dataset(config), 'ann_file', ''))
    content = mmengine.load(path) if path.endswith('.json') and Path(path).is_file() else {}
    return content if isinstance(content, dict) and {'images', 'categories'} <= content.keys() else {}


def category_ids(known: Mapping[str, Any], classes: Sequence[str]) -> list[int]:
    """The category of each label, in mmdet's order: that of the file. Without a file, the label itself."""
    ids = [category['id'] for category in known.get('categories', ()) if category['name'] in classes]
    return ids if len(ids) == len(classes) else list(range(len(classes)))


def image_ids(known: Mapping[str, Any], config: Config, sources: Sequence[Source]) -> dict[str, int]:
    """{path: id} if the annotation file has all of the images."""
    if not known:
        return {}
    prefix = test_dataset(config).data_prefix
    folder = Path(prefix.get('img') or prefix.get('img_path') or '')
    ids = {(folder / image['file_name']).resolve(): image['id'] for image in known['images']}
    paths = {source.content: Path(source.content).resolve() for source in sources if isinstance(source.content, str)}
    found = {content: ids[path] for content, path in paths.items() if path in ids}
    return found if len(found) == len(sources) else {}


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
