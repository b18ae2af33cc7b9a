"""Converts labels to the forms that mmdet and mmseg read, and holds a part of the images out."""

import json
import random
import tempfile
from pathlib import Path
from typing import TypeVar

from mmvit.own_data.labels import Labels, class_names

T = TypeVar('T')


def as_coco(images: Path, labels: Path, kind: str) -> dict:
    """Pascal VOC's or YOLO's labels in the format of COCO. Raises ImportError if supervision is not installed."""
    try:
        from supervision import DetectionDataset  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"{error}: install it by pip install 'mmvit[project]'") from error
    with tempfile.TemporaryDirectory() as folder:
        if kind == 'voc':
            data = DetectionDataset.from_pascal_voc(str(images), str(labels))
        else:
            names = Path(folder) / 'data.yaml'
            names.write_text(json.dumps({'names': class_names(labels)}))
            data = DetectionDataset.from_yolo(str(images), str(labels), str(names))
        path = Path(folder) / 'all.json'
        data.as_coco(annotations_path=str(path))
        return json.loads(path.read_text())


def split_coco(content: dict, part: float) -> dict[str, dict]:
    """{'train': ..., 'val': ...}, each in the format of COCO. ``part`` of the images is held out."""
    chosen = split(sorted(content['images'], key=lambda image: image['file_name']), part)
    return {name: subset(content, images) for name, images in chosen.items()}


def subset(content: dict, images: list[dict]) -> dict:
    """These images of a content in the format of COCO, with their annotations."""
    ids = {image['id'] for image in images}
    annotations = [item for item in content['annotations'] if item['image_id'] in ids]
    return {'categories': content['categories'], 'images': images, 'annotations': annotations}


def split_masks(labels: Labels, part: float) -> dict[str, list[str]]:
    """{'train': ..., 'val': ...}: names of images without their endings.

    Raises:
        ValueError: The images have several endings, of which mmseg takes one.
    """
    if len(endings := {Path(entry.image).suffix for entry in labels.entries}) > 1:
        raise ValueError(f'images end on {" and ".join(sorted(endings))}: save all of them in one format')
    return split(sorted(Path(entry.image).stem for entry in labels.entries), part)


def split(items: list[T], part: float) -> dict[str, list[T]]:
    """Drawn by chance, with a fixed seed. Raises ValueError if there are less than two items."""
    if len(items) < 2:
        raise ValueError(f'2 labelled images or more are needed, one to train with and one to hold out: {len(items)}')
    items = random.Random(0).sample(items, len(items))
    count = min(max(1, round(part * len(items))), len(items) - 1)
    return {'train': items[count:], 'val': items[:count]}
