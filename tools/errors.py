"""Name, count and draw the errors of a detector on its config's test data: missed, misplaced, wrong class and others.

    python tools/errors.py configs/maskrcnn_mpvit_s.py epoch_12.pth --out errors
    python tools/errors.py configs/maskrcnn_mpvit_s.py errors/predictions.json --score 0.5 --out errors_from_0.5

docs/errors.md tells what is written. It needs hotcoco: pip install 'mmvit[project]'.
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Iterator
from itertools import count
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from mmengine.config import Config

from mmvit.commands import ending
from mmvit.predicting import Predictor
from mmvit.predicting.inputs import data_of_config, find_sources
from mmvit.predicting.results import annotation_file, coco_results, find_categories, image_paths

try:
    from hotcoco import COCO, COCOeval

    from mmvit.tide import KINDS, Kind, Totals, evaluate, find_kinds, sum_up
except ImportError as error:
    sys.exit(f"error: {error}: run `pip install 'mmvit[project]'`")

Kinds = dict[int, list[tuple[str, dict[str, Any]]]]

OBJECT = Kind('object', 'white')
EDGE = [withStroke(linewidth=2, foreground='black')]  # text and lines are seen on any ground
COLUMNS, TILE = 3, 4.5  # images beside one another, and inches of each
FONT, THIN, THICK = 7, 0.8, 2.0  # points


def main() -> None:
    args = parse_args()
    with ending():
        write(args)


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
    results = None
    if args.checkpoint.endswith('.json'):
        results, labels = read_results(Path(args.checkpoint), labels)
    paths = {number: str(path) for number, path in image_paths(labels, data).items()}
    find_sources(list(paths.values()), args.out)  # a wrong path is an error before the model is loaded
    if results is None:
        results = predict(config, args, labels, paths)
    else:
        save(results, labels, args.out)
    shown = [item for item in results if item['score'] >= args.score]
    truth, lines = COCO(labels), [head(labels, results, shown, args.score)]
    evaluations = {}
    for iou_type, name in measures(labels, results).items():
        evaluations[name] = evaluate(truth, shown, iou_type)
        totals = sum_up(evaluate(truth, results, iou_type))
        lines += table(name, totals, sum_up(evaluations[name]), args.score)
    (args.out / 'errors.md').write_text('\n'.join(lines))
    print('\n'.join(lines), args.out, sep='\n')
    for name, evaluation in evaluations.items():
        draw(evaluation, find_kinds(evaluation), paths, args.count, args.out / f'{name}.png')


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


def read_results(path: Path, labels: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """COCO's results from a file, and the labels. These keep only the images of ``images.json``, if it is beside it.

    Raises:
        ValueError: It has none, or those of other images or classes.
    """
    results = read_items(path, is_result)
    beside = path.with_name('images.json')
    if beside.is_file():
        seen = {image['id']: image['file_name'] for image in read_items(beside, is_image, 'images')}
        labels = keep(labels, seen)
        for image in labels['images']:
            if not seen[image['id']].endswith(Path(image['file_name']).name):  # `predict` writes the name alone
                other = f"and the config's annotation file {image['file_name']}"
                raise ValueError(f'{beside} names image {image["id"]} {seen[image["id"]]}, {other}')
    for key, name in (('image_id', 'images'), ('category_id', 'categories')):
        if {item[key] for item in results} - {item['id'] for item in labels[name]}:
            raise ValueError(f"{path} has results for {name} that the config's annotation file does not name")
    return results, labels


def read_items(path: Path, fits: Callable[[dict[str, Any]], bool], key: str | None = None) -> list[dict[str, Any]]:
    """A file's list, or the one under a key in it. Raises ValueError if it has none, or an item that does not fit."""
    try:
        content = json.loads(path.read_text())
        items = content[key] if key else content
        good = isinstance(items, list) and all(fits(item) for item in items)
    except (ValueError, TypeError, KeyError):
        good = False
    if not good:
        what = key or 'results'
        raise ValueError(f"{path} does not hold {what} in COCO's format, as `mim run mmvit predict` writes them")
    return items


def is_result(item: dict[str, Any]) -> bool:
    """Raises TypeError or KeyError if something is missing or no number."""
    ids = isinstance(item['image_id'], int) and isinstance(item['category_id'], int)
    return ids and len(item['bbox']) == 4 and isfinite(sum(item['bbox'], item['score']))


def is_image(item: dict[str, Any]) -> bool:
    return isinstance(item['id'], int) and isinstance(item['file_name'], str)


def keep(labels: dict[str, Any], images: Collection[int]) -> dict[str, Any]:
    """The labels of some images."""
    return {
        **labels,
        'images': [image for image in labels['images'] if image['id'] in images],
        'annotations': [item for item in labels['annotations'] if item['image_id'] in images],
    }


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
    found: dict[int, list[dict[str, Any]]] = {}
    try:
        for number, sample in zip(paths, samples, strict=True):
            found[number] = list(coco_results(sample, number, categories))
    finally:  # an error or Ctrl-C loses nothing
        results = [item for items in found.values() for item in items]
        if found:
            save(results, keep(labels, found), args.out)
        if 0 < len(found) < len(paths):
            print(f'{args.out} has the predictions for {len(found)} of {len(paths)} images', file=sys.stderr)
    return results


def save(results: list[dict[str, Any]], labels: dict[str, Any], out: Path) -> None:
    """Write predictions, in place of all that an earlier run wrote."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ('errors.md', 'boxes.png', 'masks.png'):
        (out / name).unlink(missing_ok=True)
    (out / 'predictions.json').write_text(json.dumps(results))
    (out / 'images.json').write_text(json.dumps({**labels, 'annotations': []}))


def measures(labels: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, str]:
    """What detections are compared by: boxes, and masks if all have them. hotcoco would take boxes for masks."""
    has_masks = results and all(item.get('segmentation') for item in (*results, *labels['annotations']))
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
        axes.imshow(read_image(paths[number]))
        axes.set_title(f'{Path(paths[number]).name}: {errors[number]} errors', fontsize=9)
        draw_image(axes, evaluation, number, kinds[number])
    handles = [Line2D([], [], color=kind.colour, label=kind.name, linewidth=3) for kind in (OBJECT, *KINDS.values())]
    figure.legend(handles=handles, loc='outside lower center', ncols=4 if columns > 1 else 2, facecolor='grey')
    figure.savefig(out, dpi=150, bbox_inches='tight')


def read_image(path: str) -> np.ndarray:
    """(H, W, 3), RGB. Raises OSError if it cannot be read."""
    try:
        return mmcv.imread(path, channel_order='rgb')
    except Exception as error:  # each decoder has its own kinds
        raise OSError(f'{path} is not an image that can be read, and is not drawn ({error})') from error


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
