"""Check labelled images, and write a config that trains a detector or a segmenter on them.

    python tools/new_project.py IMAGES --labels annotations.json --backbone mpvit_s --head retinanet --out my_project
    mim train mmdet my_project/config.py

The labels are a .json file of COCO, a folder of Pascal VOC's .xml files, a folder of YOLO's .txt files, or a folder of
masks: a .png file for each image, whose pixels are classes. data.yaml or classes.txt, in the folder or above it, names
the classes of the last two. Problems are listed with file and line, and nothing is written before they are mended.
A training begins with random weights, or with those of --weights.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from mmvit.commands import check_folder
from mmvit.deploy.runtime import IMAGES
from mmvit.own_data.check import find_gaps, find_problems
from mmvit.own_data.configs import BOXES, MASKS, SEMANTIC, Project, detection_config, segmentation_config
from mmvit.own_data.convert import as_coco, split_coco, split_masks
from mmvit.own_data.images import list_images
from mmvit.own_data.labels import PATTERNS, Labels, guess_format, read_labels
from mmvit.own_data.pictures import draw_boxes, draw_masks, draw_sizes
from mmvit.own_data.sizes import advise, measure
from mmvit.own_data.weights import find_use


def main() -> None:
    args = parse_args()
    try:
        write_project(args)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f'nothing written: {error}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('images', type=Path, help='folder of images')
    add('--labels', type=Path, required=True, help='.json file, or folder of .xml, .txt or .png files')
    add('--format', choices=('coco', 'voc', 'yolo', 'masks'), help='of the labels (default: guessed)')
    add('--backbone', default='mpvit_s', help='as in the names of the configs (default: %(default)s)')
    add('--head', choices=(*BOXES, *MASKS, *SEMANTIC), help='default: retinanet; fpn for masks')
    add('--size', type=parse_size, default='800x1333', help='shorter side x longer side (default: %(default)s)')
    add('--weights', type=Path, help='file to begin with: a classifier, or a trained model (default: random weights)')
    add('--val', type=float, default=0.2, help='part of the images that is held out (default: %(default)s)')
    add('--out', type=Path, required=True, help='folder of the project')
    return parser.parse_args()


def parse_size(text: str) -> tuple[int, int]:
    """Shorter and longer side."""
    sides = sorted(int(side) if side.isdecimal() else 0 for side in text.split('x'))
    if len(sides) > 2 or sides[0] < 32:
        raise argparse.ArgumentTypeError(f'{text!r} is neither S nor SHORTxLONG of 32 pixels or more, such as 800x1333')
    return sides[0], sides[-1]


def write_project(args: argparse.Namespace) -> None:
    """Check the data, then write all files. Raises ValueError before the first file if that cannot be done."""
    check_folders(args.images, args.labels, args.out)
    kind = args.format or guess_format(args.labels)
    semantic = kind == 'masks'
    head = args.head or ('fpn' if semantic else 'retinanet')
    images, labelled, out = (path.resolve() for path in (args.images, args.labels, args.out))
    project = Project(images, labelled, out, head, args.backbone, args.size)
    check_options(project, kind, args.val)
    if args.weights:
        weights = args.weights.expanduser().resolve()
        project = replace(project, weights=weights, use=find_use(weights, project.base))
    labels = read_labels(args.images, args.labels, kind)
    if problems := find_problems(args.images, labels):
        raise ValueError('\n'.join([f'mend {len(problems)} problems of the data first', *problems]))
    counts = f'{len(labels.entries)} images, {len(labels.classes)} classes, {labels.counts.total()} labels'
    report = [counts, *find_gaps(args.images, labels), *describe_weights(project)]
    if semantic:
        files = write_segmenter(project, labels, args.val)
    else:
        content = labels.content or as_coco(images, labelled, kind)
        files, advice = write_detector(project, content, args.val)
        report += advice
    (project.out / 'check.txt').write_text('\n'.join([*report, '']))
    print('\n'.join([*report, *(str(args.out / name) for name in ('check.txt', *files))]))
    print(f'Train: mim train {"mmseg" if semantic else "mmdet"} {args.out / "config.py"}')


def check_folders(images: Path, labels: Path, out: Path) -> None:
    """Raises ValueError if one of them is no such folder."""
    if not images.is_dir():
        raise ValueError(f'{images} {"is a file" if images.exists() else "is not there"}: give the folder of images')
    if not labels.exists():
        raise ValueError(f'{labels} is not there: mend --labels')
    if labels.is_dir() and not list_images(images):
        raise ValueError(f'{images} has no images ({", ".join(IMAGES)}): give the folder that they lie in')
    check_folder(out)


def check_options(project: Project, kind: str, val: float) -> None:
    """Raises ValueError if they do not fit together."""
    semantic = kind == 'masks'
    if (kind == 'coco') == project.labels.is_dir():
        raise ValueError(f'--format {kind} needs --labels to be a {"file" if kind == "coco" else "folder"}')
    if kind != 'coco' and not any(project.labels.glob(PATTERNS[kind])):
        raise ValueError(f'--format {kind}: {project.labels} has no {PATTERNS[kind][1:]} file: mend one of them')
    if semantic != (project.head in SEMANTIC):
        heads = SEMANTIC if semantic else (*BOXES, *MASKS)
        raise ValueError(f'--head {project.head} does not learn from such labels: take one of {", ".join(heads)}')
    if not project.base.exists():
        raise ValueError(f'mmvit has no config {project.base.name}: docs/zoo.md lists those that there are')
    if not 0 < val < 1:
        raise ValueError(f'--val {val} is not between 0 and 1')


def describe_weights(project: Project) -> list[str]:
    if project.use == 'model':
        return [f'all weights begin with {project.weights}, but for layers of another number of classes']
    return [f'the backbone begins with {project.weights}, the head with random weights'] if project.weights else []


def write_detector(project: Project, content: dict, val: float) -> tuple[list[str], list[str]]:
    """The names of the files, and advice. ``content`` are the labels in the format of COCO."""
    if project.head in MASKS and not all(item.get('segmentation') for item in content['annotations']):
        raise ValueError(f'{project.head} learns masks, and there are boxes without: take --head {BOXES[0]}')
    parts = split_coco(content, val)
    classes = [category['name'] for category in content['categories']]
    text = detection_config(project, classes, len(parts['train']['images']))
    project.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (project.out / f'{name}.json').write_text(json.dumps(part))
    (project.out / 'config.py').write_text(text)
    draw_boxes(project.folder, content, project.out / 'labelled.png')
    sizes = measure(content, Config.fromfile(project.out / 'config.py'))
    draw_sizes(sizes, project.out / 'sizes.png')
    return ['config.py', 'train.json', 'val.json', 'labelled.png', 'sizes.png'], advise(sizes, project.size)


def write_segmenter(project: Project, labels: Labels, val: float) -> list[str]:
    """The names of the files."""
    parts = split_masks(labels, val)
    names = [entry.image for entry in labels.entries]
    text = segmentation_config(project, labels.classes, len(parts['train']), Path(names[0]).suffix)
    project.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (project.out / f'{name}.txt').write_text('\n'.join([*part, '']))
    (project.out / 'config.py').write_text(text)
    draw_masks(project.folder, project.labels, names, labels.classes, project.out / 'labelled.png')
    return ['config.py', 'train.txt', 'val.txt', 'labelled.png']


if __name__ == '__main__':
    main()
