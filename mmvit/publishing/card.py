"""The card of a published model: README.md, with the head that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pooch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mmvit.publishing.licences import NOT_STATED, hub_fields
from mmvit.publishing.records import HUB_TASKS, NOT_RECORDED, Data, Record, task_of_metric

READING_FOLDERS = '1.0.29'  # the first timm whose `local-dir:` takes model.safetensors where there is a .pth file, too


def write_card(
    folder: Path, name: str, config: str, weights: Path, record: Record, licence: str | None, not_in_timm: str
) -> None:
    """Write README.md, after all other files of the folder.

    Args:
        folder: Of the files.
        name: Of the model.
        config: Name of the config.
        weights: File of the weights.
        record: What is known of the model.
        licence: Of the weights.
        not_in_timm: Why timm cannot have the backbone; empty if it can.
    """
    sections = [
        f'# {name}',
        describe(record, config),
        section('Data', data_of(record)),
        section('Training', table(('what', 'how'), record.schedule.items())),
        section('Metrics', metrics(record)),
        section('Versions', table(('package', 'trained with'), record.trained_with.items())),
        section('Files', table(('file', 'sha256'), hashes(folder))),
        section('Licences', f'Code (mmvit): Apache-2.0. Weights: {licence or NOT_STATED}.'),
        section('How to load', loading(record, weights.name, not_in_timm)),
    ]
    head = card_data(name, record, licence, not not_in_timm).to_yaml()
    ModelCard(f'---\n{head}\n---\n\n' + '\n\n'.join(sections) + '\n').save(folder / 'README.md')


def card_data(name: str, record: Record, licence: str | None, is_in_timm: bool) -> ModelCardData:
    """The head of the card."""
    main = HUB_TASKS[record.task]
    toolbox = 'mmsegmentation' if record.task == 'Semantic Segmentation' else 'mmdetection'
    results = [
        EvalResult(
            task_type=HUB_TASKS[task_of_metric(metric, record.task)],
            dataset_type=(record.testing.name if record.testing else NOT_RECORDED).lower(),
            dataset_name=str(record.testing or NOT_RECORDED),
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in record.metrics.items()
    ]
    return ModelCardData(
        **hub_fields(licence),
        library_name='mmvit',
        pipeline_tag=main,
        tags=['mmvit', toolbox, record.task.lower().replace(' ', '-'), *(['timm'] if is_in_timm else [])],
        metrics=list(record.metrics) or None,
        model_name=name,
        eval_results=results or None,
    )


def describe(record: Record, config: str) -> str:
    return (
        f'{record.model} with the backbone {record.backbone}: {record.task.lower()}. It has '
        f'{record.parameters / 1e6:.1f} million parameters. The network takes images in '
        f'{channels(record)} order. Its config is `{config}`, of which `config.py` has all settings.'
    )


def channels(record: Record) -> str:
    return 'RGB' if record.is_rgb else 'BGR'


def data_of(record: Record) -> str:
    rows = [
        (use, data.name, data.annotations, NOT_RECORDED if data.images is None else data.images)
        for use, data in (('training', record.training), ('testing', record.testing))
        if isinstance(data, Data)
    ]
    classes = f'{len(record.classes)} classes: {", ".join(record.classes)}.' if record.classes else ''
    return '\n\n'.join([table(('for', 'data', 'annotations', 'images'), rows), classes or f'Classes: {NOT_RECORDED}.'])


def metrics(record: Record) -> str:
    if not record.metrics:
        return f'{NOT_RECORDED.capitalize()}.'
    return table(('metric', 'value'), record.metrics.items())


def hashes(folder: Path) -> list[tuple[str, str]]:
    return [(f'`{path.name}`', pooch.file_hash(str(path))) for path in sorted(folder.iterdir())]


def loading(record: Record, weights: str, not_in_timm: str) -> str:
    extra = 'seg' if record.task == 'Semantic Segmentation' else 'det'
    parts = [
        f"Install `pip install 'mmvit[{extra}]'`. `config.py` is a program that Python runs: read it first.",
        f'In this folder:\n\n{python(PREDICT.format(weights=weights))}',
        f'From a hub:\n\n{python(SNAPSHOT.format(weights=weights))}',
    ]
    if not_in_timm:
        return '\n\n'.join([*parts, f'timm cannot load the backbone: {not_in_timm}.'])
    note = (
        'Without `pretrained=True` the weights are random. There is no classifier. '
        f"`local-dir:` needs timm {READING_FOLDERS} or later. The maps are those that the model's "
        f'neck or head gets of {channels(record)} images, normalised with the mean and std of `config.json`.'
    )
    return '\n\n'.join([*parts, f'The backbone alone, with timm:\n\n{python(TIMM.format(stages=record.stages))}', note])


PREDICT = """\
from mmvit import predict

samples = predict('config.py', '{weights}', 'photographs', out='predictions')
"""
SNAPSHOT = """\
from huggingface_hub import snapshot_download
from mmvit import predict

folder = snapshot_download('OWNER/NAME')
samples = predict(f'{{folder}}/config.py', f'{{folder}}/{weights}', 'photographs')
"""
TIMM = """\
import mmvit, timm

backbone = timm.create_model('local-dir:.', pretrained=True, features_only=True, out_indices={stages})
backbone = timm.create_model('hf-hub:OWNER/NAME', pretrained=True, features_only=True, out_indices={stages})
"""


def section(title: str, text: str) -> str:
    return f'## {title}\n\n{text}'


def python(code: str) -> str:
    return f'```python\n{code}```'


def table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A table of Markdown, or words that there is nothing in it."""
    lines = [' | '.join(str(cell).replace('|', '/') for cell in row) for row in rows]
    if not lines:
        return f'{NOT_RECORDED.capitalize()}.'
    return '\n'.join(f'| {line} |' for line in [' | '.join(head), ' | '.join('---' for _ in head), *lines])
