"""Name, count and draw the errors of a detector on its config's test data: missed, false, wrong class and others.

    python tools/errors.py configs/maskrcnn_mpvit_s.py epoch_12.pth --out errors
    python tools/errors.py configs/maskrcnn_mpvit_s.py errors/predictions.json --score 0.5 --out errors_from_0.5

docs/errors.md tells what is written. It needs hotcoco: pip install 'mmvit[project]'.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import mmcv
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from mmengine.config import Config

from mmvit.predicting import Predictor
from mmvit.predicting.inputs import data_of_config, find_sources
from mmvit.predicting.results import annotation_file, coco_results, find_categories, image_ids

try:
    from hotcoco import COCO, COCOeval

    from mmvit.tide import KINDS, Kind, Totals, evaluate, find_kinds, sum_up
except ImportError as error:
    sys.exit(f"error: {error}: run `pip install 'mmvit[project]'`")

Kinds = dict[int, list[tuple[str, dict[str, Any]]]]

NEEDED = {'image_id', 'category_id', 'bbox', 'score'}
OBJECT = Kind('object', 'white')
EDGE = [withStroke(linewidth=2, foreground='black')]  # text and lines are seen on any ground
COLUMNS, TILE = 3, 4.5  # images beside one another, and inches of each
FONT, THIN, THICK = 7, 0.8, 2.0  # points


def main() -> None:
    args = parse_args()
    try:
        write(args)
    except KeyboardInterrupt as error:
        print(str(error) or 'stopped', file=sys.stderr)
        sys.exit(130)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        sys.exit(f'error: {error}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('config')
    add('checkpoint', help="path or address of the trained model, or a .json file of its results in COCO's format")
    add('--out', type=Path, default=Path('errors'), help='folder of the results (default: %(default)s)')
    add('--score', type=float, default=0.3, help='least score of what is drawn (default: %(default)s)')
    add('--count', type=int, default=9, help='how many images are drawn (default: %(default)s)')
    add('--device', help='as PyTorch names it (default: cuda if there is one, else cpu)')
    add('--batch-size', type=int, default=1, help='images of one size at a time (default: %(default)s)')
    return parser.parse_args()


def write(args: argparse.Namespace) -> None:
    """Write predictions, table and pictures, and print the table."""
    if args.count < 1:
        raise ValueError(f'--count {args.count}: take at least one image')
    config = Config.fromfile(args.config)
    data, labels = read_labels(config)
    results = read_results(args.checkpoint, labels) if args.checkpoint.endswith('.json') else None
    paths = {number: str(path) for path, number in image_ids(labels, data).items()}
    find_sources(list(paths.values()), args.out)  # a wrong path is an error before the model is loaded
    if results is None:
        results = predict(config, args, labels, paths)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'predictions.json').write_text(json.dumps(results))
    (args.out / 'images.json').write_text(json.dumps({**labels, 'annotations': []}))
    shown = [item for item in results if item['score'] >= args.score]
    truth, lines = COCO(labels), [head(labels, results, shown, args.score)]
    for iou_type, name in measures(labels, results).items():
        evaluation = evaluate(truth, shown, iou_type)
        totals = sum_up(evaluate(truth, results, iou_type))
        lines += table(name, totals, sum_up(evaluation), args.score)
        draw(evaluation, find_kinds(evaluation), paths, args.count, args.out / f'{name}.png')
    (args.out / 'errors.md').write_text('\n'.join(lines))
    print('\n'.join(lines), args.out, sep='\n')


def read_labels(config: Config) -> tuple[Any, dict[str, Any]]:
    """A config's test data, and their images, classes and objects in COCO's format.

    Raises:
        ValueError: There are none of a detector.
    """
    if config.get('default_scope') != 'mmdet':
        raise ValueError(
            f'the config is of {config.get("default_scope")}, and this command takes detectors of mmdet; '
            '`mim test mmseg CONFIG --checkpoint CHECKPOINT` measures a segmenter'
        )
    data = data_of_config(config)
    path, known = getattr(data, 'ann_file', ''), annotation_file(data)
    if not known:
        raise ValueError(f"the config's test data have no annotation file of COCO's format here ({path or 'no name'})")
    if not all('bbox' in item for item in known.get('annotations', [{}])):
        raise ValueError(f'{path} has no boxes to compare with')
    classes = data.metainfo['classes']
    if missing := set(classes) - {category['name'] for category in known['categories']}:
        raise ValueError(f'{path} lacks the classes {", ".join(sorted(missing))} of the config')
    categories = find_categories(known, classes)
    ids = {category['id'] for category in categories}
    objects = [item for item in known['annotations'] if item['category_id'] in ids]
    return data, {'images': known['images'], 'categories': categories, 'annotations': objects}


def read_results(path: str, labels: dict[str, Any]) -> list[dict[str, Any]]:
    """COCO's results from a file. ``labels`` keep only the images of ``images.json``, if that is beside it.

    Raises:
        ValueError: It has none, or those of other images or classes.
    """
    try:
        results = json.loads(Path(path).read_text())
    except ValueError:
        results = None
    if not isinstance(results, list) or not all(isinstance(item, dict) and item.keys() >= NEEDED for item in results):
        raise ValueError(f"{path} does not hold results in COCO's format, as `mim run mmvit predict` writes them")
    beside = Path(path).with_name('images.json')
    if beside.is_file():
        seen = {image['id'] for image in json.loads(beside.read_text())['images']}
        labels['images'] = [image for image in labels['images'] if image['id'] in seen]
        labels['annotations'] = [item for item in labels['annotations'] if item['image_id'] in seen]
    for key, name in (('image_id', 'images'), ('category_id', 'categories')):
        if {item[key] for item in results} - {item['id'] for item in labels[name]}:
            raise ValueError(f"{path} has results for {name} that the config's annotation file does not name")
    return results


def predict(
    config: Config, args: argparse.Namespace, labels: dict[str, Any], paths: dict[int, str]
) -> list[dict[str, Any]]:
    """COCO's results for all images."""
    predictor = Predictor(config, args.checkpoint, args.device)
    classes = predictor.inferencer.model.dataset_meta['classes']
    names = [category['name'] for category in labels['categories']]
    if set(classes) != set(names):
        raise ValueError(f'the model finds {", ".join(classes)}, and the test data have {", ".join(names)}')
    categories = [category['id'] for category in labels['categories']]
    samples = predictor.predict(list(paths.values()), batch_size=args.batch_size)
    return [
        item for number, sample in zip(paths, samples, strict=True) for item in coco_results(sample, number, categories)
    ]


def measures(labels: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, str]:
    """What detections are compared by: boxes, and masks if all have them. hotcoco would take boxes for masks."""
    has_masks = results and all('segmentation' in item for item in (*results, *labels['annotations']))
    return {'bbox': 'boxes', **({'segm': 'masks'} if has_masks else {})}


def head(labels: dict[str, Any], results: list[dict[str, Any]], shown: list[dict[str, Any]], score: float) -> str:
    objects, images = len(labels['annotations']), len(labels['images'])
    found = f'{len(results)} detections, of which {len(shown)} have a score of {score} or more'
    return f'{images} images, {objects} objects, {found}\n'


def table(name: str, totals: Totals, shown: Totals, score: float) -> list[str]:
    """The lines of a table in Markdown."""
    rows = [
        f'| {kind.name} | {key if key in totals.costs else ""} | {shown.counts[key]} | {totals.counts[key]} '
        f'| {f"{totals.costs[key]:.3f}" if key in totals.costs else ""} | {kind.meaning} |'
        for key, kind in KINDS.items()
    ]
    title = f'| {name} | TIDE | score from {score} | all | costs AP50 | what it is |'
    return [f'AP50 of {name}: {totals.ap50:.3f}\n', title, '|---|---|---|---|---|---|', *rows, '']


def draw(evaluation: COCOeval, kinds: Kinds, paths: dict[int, str], most: int, out: Path) -> None:
    """At most so many images, those with the most errors, and in them all objects and detections."""
    errors = {number: sum(kind != 'Correct' for kind, _ in found) for number, found in kinds.items()}
    worst = sorted(filter(errors.get, errors), key=lambda number: -errors[number])[:most]
    if not worst:
        return
    columns = min(COLUMNS, len(worst))
    rows = ceil(len(worst) / columns)
    figure = Figure(figsize=(TILE * columns, TILE * rows + 1), layout='compressed')
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis('off')
    for axes, number in zip(figure.axes, worst, strict=False):
        axes.imshow(mmcv.imread(paths[number], channel_order='rgb'))
        axes.set_title(f'{Path(paths[number]).name}: {errors[number]} errors', fontsize=9)
        draw_image(axes, evaluation, number, kinds[number])
    handles = [Line2D([], [], color=kind.colour, label=kind.name, linewidth=3) for kind in (OBJECT, *KINDS.values())]
    figure.legend(handles=handles, loc='outside lower center', ncols=4 if columns > 1 else 2, facecolor='grey')
    figure.savefig(out, dpi=150, bbox_inches='tight')


def draw_image(axes: Axes, evaluation: COCOeval, number: int, kinds: list[tuple[str, dict[str, Any]]]) -> None:
    """Outline all objects and what is correct with thin lines, and errors with thick ones, and name these."""
    truth = evaluation.coco_gt
    for item in truth.load_anns(truth.get_ann_ids([number])):
        outline(axes, evaluation, item, OBJECT.colour, THIN)
    for key, item in kinds:
        outline(axes, evaluation, item, KINDS[key].colour, THIN if key == 'Correct' else THICK)
    names = {category: content['name'] for category, content in truth.cats.items()}
    texts = [
        (KINDS[key], item['bbox'], f'{KINDS[key].name}: {names[item["category_id"]]} {score_of(item)}')
        for key, item in kinds
        if key != 'Correct'
    ]
    places = free_places([(box[0], box[1], len(text)) for _, box, text in texts], axes)
    for (kind, _, text), place in zip(texts, places, strict=True):
        axes.text(*place, text, color=kind.colour, fontsize=FONT, fontweight='bold', path_effects=EDGE)


def score_of(item: dict[str, Any]) -> str:
    """Of a detection; nothing for an object."""
    return f'({item["score"]:.2f})' if 'score' in item else ''


def free_places(wanted: list[tuple[float, float, int]], axes: Axes) -> Iterator[tuple[float, float]]:
    """Where to begin texts, near left, top and with their numbers of letters, so that none hides another."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    point = max(right - left, bottom - top) / (72 * TILE)
    line, letter = 1.3 * FONT * point, 0.7 * FONT * point
    taken: list[tuple[float, float, float]] = []
    for x, y, letters in wanted:
        start = max(left, min(x, right - letters * letter))
        end = start + letters * letter
        ys = (y - point + sign * step * line for step in count() for sign in (-1, 1))
        free = next(
            y
            for y in ys
            if y > top + line and not any(abs(y - v) < line and start < b and a < end for a, b, v in taken)
        )
        taken.append((start, end, free))
        yield start, free


def outline(axes: Axes, evaluation: COCOeval, item: dict[str, Any], colour: str, width: float) -> None:
    if evaluation.params.iou_type == 'bbox':
        x, y, w, h = item['bbox']
        axes.add_patch(Rectangle((x, y), w, h, fill=False, color=colour, linewidth=width))
    else:
        axes.contour(evaluation.coco_gt.ann_to_mask(item), [0.5], colors=colour, linewidths=width)


if __name__ == '__main__':
    main()
