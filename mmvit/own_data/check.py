"""Finds what is wrong with labelled images before a training does."""

from pathlib import Path

from PIL import Image

from mmvit.own_data.labels import Labels, list_images

EXIF_ORIENTATION = 0x0112
OUTSIDE = 1.0  # pixels by which a box may pass the image's edge: labelling programs round


def find_problems(images: Path, labels: Labels) -> list[str]:
    """The problems of a data set, each as 'file:line: kind: sentence'; masks and images have no lines."""
    sizes, problems = check_images(images, labels)
    return [*labels.problems, *problems, *check_boxes(labels, sizes)]


def check_images(images: Path, labels: Labels) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(width, height) of each image that there is, and the problems."""
    sizes, problems = {}, []
    for entry in labels.entries:
        path = images / entry.image
        if not path.exists():
            problems.append(f'{entry.place}: missing image: {path} does not exist')
            continue
        try:
            with Image.open(path) as opened:
                opened.load()
                size, turned = opened.size, opened.getexif().get(EXIF_ORIENTATION, 1) != 1
        except OSError as error:
            problems.append(f'{path}: broken image: {error}')
            continue
        sizes[entry.image] = size
        if turned:
            problems.append(f'{path}: EXIF rotation: save the image upright, without the mark')
        if entry.size and entry.size != size:
            problems.append(f'{entry.place}: wrong image size: {entry.size}, and {path} has {size}')
    return sizes, problems


def check_boxes(labels: Labels, sizes: dict[str, tuple[int, int]]) -> list[str]:
    problems = []
    for box in labels.boxes:
        left, top, right, bottom = box.corners
        if right <= left or bottom <= top:
            problems.append(f'{box.place}: zero area: {box.name} from {left, top} to {right, bottom}')
        elif box.image in sizes:
            width, height = sizes[box.image]
            if min(left, top) < -OUTSIDE or right > width + OUTSIDE or bottom > height + OUTSIDE:
                where = f'from {left, top} to {right, bottom} of {width, height}'
                problems.append(f'{box.place}: box outside: {box.name} {where}')
    return problems


def find_gaps(images: Path, labels: Labels) -> list[str]:
    """What may be meant: classes that occur nowhere, and images without labels."""
    gaps = [f'empty class: {name} occurs nowhere' for name in labels.classes if not labels.counts[name]]
    named = {Path(entry.image).name for entry in labels.entries}
    if unnamed := [path.name for path in list_images(images) if path.name not in named]:
        gaps.append(f'images without labels: {len(unnamed)}, the first is {unnamed[0]}')
    return gaps
