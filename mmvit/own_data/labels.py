"""Reads labels in COCO's, Pascal VOC's and YOLO's formats and masks of classes, with the lines where they stand."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from mmvit.own_data.images import decode, list_images, stored_size

PATTERNS = {'voc': '*.xml', 'masks': '*.png', 'yolo': '*.txt'}  # of the files in a folder of labels
IGNORED = 255  # the value of pixels without a label in a mask


@dataclass(frozen=True)
class Entry:
    """What the labels say of an image: where, its name, and (width, height) if they tell it."""

    place: str
    image: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Box:
    """A labelled box: where it stands, its image, class and corners (left, top, right, bottom) in pixels."""

    place: str
    image: str
    name: str
    corners: tuple[float, float, float, float]


@dataclass
class Labels:
    """All labels of a data set. ``problems`` has what was found in reading them, as 'file:line: kind: sentence'."""

    classes: list[str]
    entries: list[Entry] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # boxes, or masks, of each class
    problems: list[str] = field(default_factory=list)
    content: dict | None = None  # of a file of COCO
    takes_unlabelled: bool = False  # an image without labels is one without objects

    def add_box(self, *args: object) -> None:
        box = Box(*args)  # type: ignore[arg-type]
        self.boxes.append(box)
        self.counts[box.name] += 1


def guess_format(labels: Path) -> str:
    """'coco', 'voc', 'yolo' or 'masks'. Raises ValueError if the files are of none of them."""
    if labels.is_file() and labels.suffix == '.json':
        return 'coco'
    for name, pattern in PATTERNS.items():
        if labels.is_dir() and any(labels.glob(pattern)):
            return name
    raise ValueError(f'{labels} is no .json file and no folder of .xml, .txt or .png files: mend --labels')


def read_labels(images: Path, labels: Path, kind: str) -> Labels:
    """Read labels of a kind that ``guess_format`` names. Raises ValueError if a file is not in that format."""
    if kind == 'coco':
        return read_coco(labels)
    if kind == 'voc':
        return read_voc(labels)
    return {'yolo': read_yolo, 'masks': read_masks}[kind](images, labels)


def read_coco(path: Path) -> Labels:
    text = read_text(path)
    try:
        content = json.loads(text)
        names = {category['id']: category['name'] for category in content['categories']}
        labels = Labels(classes=list(names.values()), content=content)
        seen: set[tuple[str, int]] = set()
        files = {}
        for line, image in json_items(text, 'images'):
            place = f'{path}:{line}'
            files[image['id']] = image['file_name']
            labels.entries.append(Entry(place, image['file_name'], (image['width'], image['height'])))
            labels.problems += duplicate(seen, place, 'image', image['id'])
        for line, item in json_items(text, 'annotations'):
            place = f'{path}:{line}'
            labels.problems += duplicate(seen, place, 'annotation', item['id'])
            if item['category_id'] not in names:
                labels.problems.append(f'{place}: unknown class: no category has the id {item["category_id"]}')
            elif item['image_id'] not in files:
                labels.problems.append(f'{place}: missing image: no image has the id {item["image_id"]}')
            else:
                x, y, w, h = item['bbox']
                labels.add_box(place, files[item['image_id']], names[item['category_id']], (x, y, x + w, y + h))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is not in the format of COCO: {error!r}') from error
    return labels


def duplicate(seen: set[tuple[str, int]], place: str, kind: str, number: int) -> list[str]:
    """The problem if ``seen`` has this id already; it has it afterwards."""
    if (kind, number) in seen:
        return [f'{place}: duplicate id: another {kind} has {number}']
    seen.add((kind, number))
    return []


def json_items(text: str, key: str) -> Iterator[tuple[int, dict]]:
    """Line and content of each object of the list ``key``. Raises KeyError if there is no such list."""
    if not (start := re.search(rf'"{key}"\s*:\s*\[', text)):
        raise KeyError(key)
    decoder, position, line, counted = json.JSONDecoder(), start.end(), 1, 0
    before = re.compile(r'[\s,]*(?=\{)')
    while found := before.match(text, position):
        line += text.count('\n', counted, found.end())
        counted = found.end()
        item, position = decoder.raw_decode(text, counted)
        yield line, item


def read_voc(folder: Path) -> Labels:
    """The classes are those that data.yaml or classes.txt names if there is one, and else those of the boxes."""
    try:
        from defusedxml import ElementTree  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"{error}: install it by pip install 'mmvit[project]'") from error

    names = find_names(folder)
    labels = Labels(classes=names or [], takes_unlabelled=True)
    for path in sorted(folder.glob('*.xml')):
        text = read_text(path)
        try:
            root = ElementTree.fromstring(text)
            size = int(root.find('size').findtext('width')), int(root.find('size').findtext('height'))
            if not (image := root.findtext('filename')):
                raise ValueError('it names no image')
            labels.entries.append(Entry(f'{path}:{line_of(text, text.find("<size"))}', image, size))
            starts = [found.start() for found in re.finditer(r'<object[\s>]', text)]
            for start, item in zip(starts, root.findall('object'), strict=True):
                place, name = f'{path}:{line_of(text, start)}', item.findtext('name')
                if names and name not in names:
                    labels.problems.append(f'{place}: unknown class: {name} is not in the list of classes')
                    continue
                box = item.find('bndbox')
                left, top, right, bottom = (float(box.findtext(side)) for side in ('xmin', 'ymin', 'xmax', 'ymax'))
                labels.add_box(place, image, name, (left - 1, top - 1, right, bottom))  # it counts pixels from 1
        except (AttributeError, TypeError, ValueError, ElementTree.ParseError) as error:
            raise ValueError(f'{path} is not in the format of Pascal VOC: {error}') from error
    labels.classes = names or sorted(labels.counts)
    return labels


def line_of(text: str, position: int) -> int:
    return text.count('\n', 0, position) + 1


def read_yolo(images: Path, folder: Path) -> Labels:
    names = class_names(folder)
    labels = Labels(classes=names, takes_unlabelled=True)
    for path, image in with_images(images, set(folder.glob('*.txt')) - {folder / 'classes.txt'}, labels.problems):
        labels.entries.append(Entry(f'{path}:1', image.name))
        width, height = stored_size(image)
        for line, words in enumerate(read_text(path).splitlines(), 1):
            if not words.strip():
                continue
            place = f'{path}:{line}'
            try:
                number, *values = (float(word) for word in words.split())
                left, top, right, bottom = yolo_corners(values)
            except ValueError as error:
                raise ValueError(f'{place} is not in the format of YOLO: {error}') from error
            if number not in range(len(names)):
                labels.problems.append(f'{place}: unknown class: {number:g}, and there are {len(names)} names')
                continue
            corners = (left * width, top * height, right * width, bottom * height)
            labels.add_box(place, image.name, names[int(number)], corners)
    return labels


def yolo_corners(values: list[float]) -> tuple[float, float, float, float]:
    """The corners, relative to the image, of a box (centre, size) or around a polygon (x, y, x, y, ...)."""
    if len(values) == 4:
        x, y, w, h = values
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f'{len(values)} numbers after the class are neither a box nor a polygon')
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def read_masks(images: Path, folder: Path) -> Labels:
    """A .png file for each image, of the same name; its values are classes, counted from 0, or 255 for no label."""
    names = class_names(folder)
    labels = Labels(classes=names)
    for path, image in with_images(images, set(folder.glob('*.png')), labels.problems):
        try:
            mask = decode(path)
        except ValueError as error:
            labels.problems.append(f'{path}: broken mask: {error}')
            continue
        if mask.mode not in ('L', 'P'):
            raise ValueError(f'{path} is no mask: a pixel must be one number, and these are {mask.mode}')
        labels.entries.append(Entry(str(path), image.name, mask.size))
        values = np.unique(np.asarray(mask))
        for value in map(int, values[values != IGNORED]):
            if value < len(names):
                labels.counts[names[value]] += 1
            else:
                labels.problems.append(f'{path}: unknown class: {value}, and there are {len(names)} names')
    return labels


def with_images(images: Path, files: set[Path], problems: list[str]) -> Iterator[tuple[Path, Path]]:
    """Each file of labels with the image of its name. ``problems`` gets those that have none, or two."""
    by_stem: dict[str, list[Path]] = {}
    for image in list_images(images):
        by_stem.setdefault(image.stem, []).append(image)
    for path in sorted(files):
        found = by_stem.get(path.stem, [])
        if len(found) == 1:
            yield path, found[0]
        elif found:
            problems.append(f'{path}: two images: {" and ".join(image.name for image in found)} have its name')
        else:
            problems.append(f'{path}: missing image: {images} has none of the name {path.stem}')


def class_names(folder: Path) -> list[str]:
    """As ``find_names``. Raises ValueError if there are none."""
    if names := find_names(folder):
        return names
    raise ValueError(f'no data.yaml and no classes.txt in {folder} or above it names the classes: write one')


def find_names(folder: Path) -> list[str] | None:
    """The classes that data.yaml, or classes.txt with a name a line, in or above the folder names."""
    for parent in (folder, folder.parent):
        if (path := parent / 'data.yaml').exists():
            return yaml_names(path)
        if (path := parent / 'classes.txt').exists():
            return [name for line in read_text(path).splitlines() if (name := line.strip())]
    return None


def yaml_names(path: Path) -> list[str]:
    try:
        names = yaml.safe_load(read_text(path))['names']
        return [str(names[i]) for i in range(len(names))]
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f'{path} needs names: a list, or a table with the numbers from 0 ({error!r})') from error


def read_text(path: Path) -> str:
    """Raises ValueError if a file is no text in UTF-8. A byte order mark, which Windows writes, is left out."""
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is no text in UTF-8: save it in that encoding ({error})') from None
