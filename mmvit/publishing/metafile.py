"""A published model's entry in a model index, in OpenMMLab's form."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import mmengine
import pooch

from mmvit.checkpoints.files import CONFIGS
from mmvit.publishing.licences import NOT_STATED
from mmvit.publishing.records import NOT_RECORDED, Record, task_of_metric


def write_metafile(
    folder: Path, name: str, weights: Path, record: Record, licence: str | None, url: str | None
) -> None:
    """Write ``metafile.yml``, whose paths begin with the folder's name."""
    collection = collection_of(record)
    model = {
        'Name': name,
        'In Collection': collection['Name'],
        'Config': f'{name}/config.py',
        'Metadata': metadata(weights, record, licence),
        'Results': results(record),
        'Weights': '/'.join([*([url.rstrip('/')] if url else []), name, weights.name]),
    }
    entries = {'Collections': [collection], 'Models': [{key: value for key, value in model.items() if value}]}
    mmengine.dump(entries, folder / 'metafile.yml', sort_keys=False, allow_unicode=True)


def collection_of(record: Record) -> dict[str, Any]:
    """The family's collection in mmvit's own metafile. Other models are in one of their class."""
    path = CONFIGS / f'metafile_{record.family}.yml'
    if not path.is_file():
        return {'Name': record.model}
    own = mmengine.load(path)['Collections'][0]
    return {'Name': own['Name'], 'Paper': own['Paper']}


def metadata(weights: Path, record: Record, licence: str | None) -> dict[str, Any]:
    found = {
        'Architecture': [record.model, record.backbone],
        'Parameters (M)': round(record.parameters / 1e6, 1),
        'Training Data': record.training and record.training.name,
        'Training Images': record.training and record.training.images,
        'Weights License': licence or NOT_STATED,
        'Weights SHA256': pooch.file_hash(str(weights)),
    }
    return {key: value for key, value in found.items() if value}


def results(record: Record) -> list[dict[str, Any]]:
    """The metrics of each task."""
    tasks = {name: task_of_metric(name, record.task) for name in record.metrics}
    by_task = groupby(sorted(tasks, key=tasks.__getitem__), key=tasks.__getitem__)
    data = str(record.testing or NOT_RECORDED)
    return [
        {'Task': task, 'Dataset': data, 'Metrics': {name: record.metrics[name] for name in names}}
        for task, names in by_task
    ]
