"""The errors of a detector in the kinds of TIDE (Bolya et al., ECCV 2020, arXiv:2008.08115), with hotcoco.

hotcoco matches detections to objects as COCO does, counts the errors of each kind, and says what a kind costs. It does
not say which detection is of which kind. That follows here from its matches and overlaps, by the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval
from hotcoco.mask import iou

PLACED, TOUCHING = 0.5, 0.1  # IoU from which a detection is well placed, and from which it belongs to an object


@dataclass(frozen=True)
class Kind:
    name: str
    colour: str
    meaning: str = ''


# By hotcoco's keys. It has none for what is correct.
KINDS = {
    'Correct': Kind('correct', 'lime', f'a detection of the right class at an IoU of {PLACED} or more'),
    'Miss': Kind('missed', 'dodgerblue', 'an object that no detection finds, not even with a wrong class or misplaced'),
    'Bkg': Kind('background', 'red', f'a detection where no object is: its IoU with each is {TOUCHING} or less'),
    'Cls': Kind('wrong class', 'orange', f'a detection of a wrong class at an IoU of {PLACED} or more'),
    'Loc': Kind('misplaced', 'yellow', f'a detection of the right class at an IoU of {TOUCHING} to {PLACED}'),
    'Both': Kind('class and place', 'violet', f'a detection of a wrong class at an IoU of {TOUCHING} to {PLACED}'),
    'Dupe': Kind('duplicate', 'cyan', 'one more detection of an object that has a correct one'),
}


@dataclass(frozen=True)
class Totals:
    """AP50, and for each kind how many there are and by how much it lowers AP50."""

    ap50: float
    counts: dict[str, int]
    costs: dict[str, float]


def evaluate(truth: COCO, results: list[dict[str, Any]], iou_type: str) -> COCOeval:
    """Match COCO's results to the objects by their boxes ('bbox') or masks ('segm')."""
    evaluation = COCOeval(truth, truth.load_res(results), iou_type)
    evaluation.evaluate()
    return evaluation


def sum_up(evaluation: COCOeval) -> Totals:
    tide = evaluation.tide_errors(PLACED, TOUCHING)
    correct = len(evaluation.image_diagnostics(PLACED)['dt_match'])
    return Totals(tide['ap_base'], {'Correct': correct, **tide['counts']}, tide['delta_ap'])


def find_kinds(evaluation: COCOeval) -> dict[int, list[tuple[str, dict[str, Any]]]]:
    """For each image, by its id: all detections and all missed objects, with their kinds.

    Crowds are never missed, and what is found in them is left out, as is what COCO does not count: all but the 100
    best detections of a class in an image.
    """
    matches = evaluation.image_diagnostics(PLACED)
    truth, found = evaluation.coco_gt, evaluation.coco_dt
    kinds = {}
    for image in truth.get_img_ids():
        objects = truth.load_anns(truth.get_ann_ids([image]))
        objects.sort(key=lambda item: (item['iscrowd'], item['category_id']))  # the first of equal IoUs, as hotcoco has
        detections = found.load_anns(found.get_ann_ids([image]))
        correct = [item for item in detections if item['id'] in matches['dt_match']]
        wrong = [item for item in detections if matches['dt_status'].get(item['id']) == 'fp']
        unmatched = [item for item in objects if matches['gt_status'].get(item['id']) == 'fn']
        overlaps = overlaps_of(evaluation, wrong, objects)
        errors = [kind_of(item, objects, row, matches) for item, row in zip(wrong, overlaps, strict=True)]
        claimed = {target for _, target in errors}
        kinds[image] = [
            *(('Correct', item) for item in correct),
            *(('Miss', item) for item in unmatched if item['id'] not in claimed),
            *((kind, item) for (kind, _), item in zip(errors, wrong, strict=True)),
        ]
    return kinds


def overlaps_of(evaluation: COCOeval, detections: Sequence[dict], objects: Sequence[dict]) -> np.ndarray:
    """The IoU of each detection with each object."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    crowds = [item['iscrowd'] for item in objects]
    if evaluation.params.iou_type == 'bbox':
        return iou([item['bbox'] for item in detections], [item['bbox'] for item in objects], crowds)
    to_mask = evaluation.coco_gt.ann_to_rle
    return iou([to_mask(item) for item in detections], [to_mask(item) for item in objects], crowds)


def kind_of(
    detection: dict[str, Any], objects: Sequence[dict], overlaps: np.ndarray, matches: dict[str, Any]
) -> tuple[str, int | None]:
    """The kind of a detection that is not correct, and the id of the object that it misses by its class or place."""
    ids = np.array([item['id'] for item in objects], int)
    same = np.array([item['category_id'] == detection['category_id'] for item in objects], bool)
    crowd = np.array([item['iscrowd'] for item in objects], bool)
    own, other = np.where(same, overlaps, 0), np.where(same | crowd, 0, overlaps)
    if TOUCHING <= own.max(initial=0) <= PLACED:
        return 'Loc', int(ids[own.argmax()])
    if other.max(initial=0) >= PLACED:
        return 'Cls', int(ids[other.argmax()])
    if any(number in matches['gt_match'] for number in ids[own >= PLACED].tolist()):
        return 'Dupe', None
    return ('Bkg' if other.max(initial=0) <= TOUCHING else 'Both'), None
