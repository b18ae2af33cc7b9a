"""Finds what is wrong with labelled images before a training does."""

from pathlib import Path

from mmvit.own_data.images import advise_rotation, decode, list_images, rotation
from mmvit.own_data.labels import Entry, Labels

OUTSIDE = 1.0  # pixels by which a box may pass the image's edge: labelling programs round


def find_problems(images: Path, labels: Labels) -> list[str]:
    """The problems of a data set, each as 'file:line: kind: sentence'; masks and images have no lines."""
    sizes, problems = check_images(images, labels)
    return [*labels.problems, *problems, *check_boxes(labels, sizes)]


def check_images(images: Path, labels: Labels) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(width, height) of each image that is upright, and the problems of all that a training would read."""
    unlabelled = without_labels(images, labels) if labels.takes_unlabelled else []
    sizes, problems = {}, []
    for entry in (*labels.entries, *(Entry(str(path), path.name) for path in unlabelled)):
        path = images / entry.image
        if not path.is_file():
            problems.append(f'{entry.place}: missing image: {path} does not exist')
            continue
        try:
            image = decode(path)
        except ValueError as error:
            problems.append(f'{path}: broken image: {error}')
            continue
        sides = {image.size}
        if rotation(image) == 1:
            sizes[entry.image] = image.size
        else:
            problems.append(f'{path}: EXIF rotation: {advise_rotation(image, entry.size)}')
            sides.add(image.size[::-1])
        if entry.size and entry.size not in sides:
            problems.append(f'{entry.place}: wrong image size: {entry.size}, and {path} has {image.size}')
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
    if unlabelled := without_labels(images, labels):
        gaps.append(f'images without labels: {len(unlabelled)}, the first is {unlabelled[0].name}')
    return gaps


def without_labels(images: Path, labels: Labels) -> list[Path]:
    named = {Path(entry.image).name for entry in labels.entries}
    return [path for path in list_images(images) if path.name not in named]
