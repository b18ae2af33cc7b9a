"""Compare exported models with PyTorch: time and memory of backbones or whole models, by engine and precision.

A model is a config, CONFIG.py or PACKAGE::CONFIG.py, with ``=CHECKPOINT`` behind it or with random weights. Each is
measured in every form:

    torch              as mmdet and mmseg run it
    onnxruntime        the exported file
    onnxruntime@int8   computing in 8-bit integers
    openvino, openvino@bf16, openvino@int8, openvino@int8+bf16

    python tools/benchmark_deploy.py configs/maskrcnn_mpvit_s.py --json deploy.json
    python tools/benchmark_deploy.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py configs/maskrcnn_mpvit_s.py \
        --forms torch openvino openvino@bf16
    python tools/benchmark_deploy.py configs/maskrcnn_mpvit_s.py --part backbone --size 400x667

Each measurement has a process of its own. The first form of the first model is the one that ratios refer to. The
graphs are recorded at the size that is measured, so models whose graphs are right at one size only can be compared.
Integers are calibrated by made images, which serves for time, and not for accuracy. A whole detector without a
checkpoint gets a score threshold at which it finds some boxes.

Each row is printed when it is there, and --json is written anew. A model or form that fails gets a row with the reason;
the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from benchmark import (
    describe_environment,
    describe_error,
    in_fresh_process,
    load_config,
    parse_size,
    peak_memory,
    replace_file,
)
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from mmvit.checkpoints.trained import load_trained
from mmvit.deploy import exporter, proof, smaller
from mmvit.deploy.graphs import graph_of
from mmvit.deploy.runtime import ENGINES

FORMS = (
    'torch',
    'onnxruntime',
    'onnxruntime@int8',
    'openvino',
    'openvino@bf16',
    'openvino@int8',
    'openvino@int8+bf16',
)
CALIBRATION = 2  # made images


@dataclass(frozen=True)
class Job:
    """One form of one model.

    Attributes:
        model: As named on the command line.
        form: One of ``FORMS``.
        part: ``'backbone'`` or ``'model'``.
        size: Height and width in pixels.
        threads: Of the CPU.
        repeats: Runs that are timed.
        folder: Of the exported files.
    """

    model: str
    form: str
    part: str
    size: tuple[int, int]
    threads: int
    repeats: int
    folder: Path

    @property
    def file(self) -> Path:
        """The exported file of the model."""
        return self.folder / f'{Path(self.model.partition("=")[0]).stem}.onnx'


@dataclass(frozen=True)
class Row:
    """What was measured of a job, or why nothing was.

    Attributes:
        times: Seconds of each run.
        memory: Bytes by which the process grows at most, from before the model is loaded to the end of its first run.
        file: Bytes of the exported file.
        failure: The reason.
    """

    job: Job
    times: tuple[float, ...] = ()
    memory: int = 0
    file: int = 0
    failure: str = ''

    @property
    def quartiles(self) -> list[float]:
        """Lower quartile, median and upper quartile of the seconds."""
        return np.percentile(self.times, [25, 50, 75]).tolist()


def main() -> None:
    args = parse_args()
    environment = describe_environment(args)
    print('\n'.join(f'{key}: {value}' for key, value in environment.items()))
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for model in args.models:
            jobs = [
                Job(model, form, args.part, args.size, args.threads, args.repeats, Path(folder)) for form in args.forms
            ]
            for row in measured(jobs):
                rows.append(row)
                print_row(row)
                if args.json:
                    save(args.json, environment, rows)
    print_table(rows)
    if failed := sum(bool(row.failure) for row in rows):
        sys.exit(f'{failed} of {len(rows)} measurements failed')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='+', metavar='CONFIG[=CHECKPOINT]')
    parser.add_argument('--forms', nargs='+', choices=FORMS, default=FORMS, metavar='FORM', help='default: all')
    parser.add_argument('--part', choices=['backbone', 'model'], default='model')
    parser.add_argument('--size', type=parse_size, default=(800, 1333), metavar='HxW', help='default: 800x1333')
    parser.add_argument('--repeats', type=int, default=10, help='timed runs (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='default: %(default)s')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write everything measured')
    parser.set_defaults(device='cpu', neighbours=0)
    return parser.parse_args()


def measured(jobs: Sequence[Job]) -> Iterator[Row]:
    """A row for each form of one model."""
    exports = any(job.form != 'torch' for job in jobs)
    failure = attempt(jobs[0], write_files, jobs) if exports else None
    for job in jobs:
        if job.form != 'torch' and failure:
            yield Row(job, failure=failure.failure)
        else:
            yield attempt(job, measure, job)


def attempt(job: Job, function: Callable, argument: Any) -> Any:
    """What a function gives in a process of its own, or a row that says why it failed."""
    try:
        return in_fresh_process(function, argument)
    except Exception as error:
        return Row(job, failure=describe_error(error))


def write_files(jobs: Sequence[Job]) -> None:
    """Export a model for its forms."""
    job = jobs[0]
    exporter.write(graph_of(load(job)), job.file, {}, job.size)
    if any('int8' in job.form for job in jobs):
        smaller.quantise(job.file, [image(job)] * CALIBRATION)


def measure(job: Job) -> Row:
    """To be called in a fresh process, where no freed memory is at hand to be used again."""
    torch.set_num_threads(job.threads)
    model = load(job) if job.form == 'torch' else None
    runs = []

    def first_run() -> None:
        runs.append(start(job, model))
        runs[0]()

    memory = peak_memory(first_run, 'cpu')
    if model is not None:
        memory += sum(tensor.nbytes for tensor in model.state_dict().values())
    file = file_of(job).stat().st_size if model is None else 0
    return Row(job, tuple(seconds(runs[0]) for _ in range(job.repeats)), memory, file)


def seconds(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def load(job: Job) -> nn.Module:
    """The job's model or backbone in eval mode."""
    path, _, checkpoint = job.model.partition('=')
    config = load_config(path)
    init_default_scope(config.get('default_scope') or 'mmdet')
    torch.manual_seed(0)
    if checkpoint:
        model = load_trained(config, checkpoint)[0]
    else:
        model = revert_sync_batchnorm(MODELS.build(config.model)).eval()
        model = proof.lenient(model) if finds_boxes(model) else model
    return (model.backbone if job.part == 'backbone' else model).requires_grad_(False)  # type: ignore[return-value]


def finds_boxes(model: Any) -> bool:
    return hasattr(model, 'rpn_head') or hasattr(model, 'bbox_head')


def start(job: Job, model: nn.Module | None) -> Callable[[], Any]:
    """What runs the job once."""
    if model is None:
        engine, _, options = job.form.partition('@')
        run, _ = ENGINES[engine](str(file_of(job)), job.threads, 'bf16' if 'bf16' in options else 'f32')
        return partial(run, proof.batch_of(image(job)).numpy())
    if job.part == 'model':
        return partial(proof.computed, model, image(job))
    return partial(torch.no_grad()(model), proof.batch_of(image(job)))


def file_of(job: Job) -> Path:
    """The exported file of the job's form."""
    return smaller.beside(job.file, 'int8') if 'int8' in job.form else job.file


def image(job: Job) -> np.ndarray:
    return proof.made_image(*job.size)


def save(path: Path, environment: dict[str, Any], rows: Sequence[Row]) -> None:
    data = {'environment': environment, 'results': [asdict(row) for row in rows]}
    replace_file(path, json.dumps(data, indent=2, default=str) + '\n')


def print_row(row: Row) -> None:
    low, median, high = (1e3 * seconds for seconds in row.quartiles) if row.times else (0, 0, 0)
    said = row.failure or f'{median:.1f} ms ({low:.1f} - {high:.1f}), {row.memory / 2**20:.0f} MiB'
    print(f'{row.job.model} {row.job.form}: {said}', flush=True)


def print_table(rows: Sequence[Row]) -> None:
    """All rows; ratios are to the first one."""
    table = Table('model', 'form', box=box.MARKDOWN)
    for name in ('ms', 'quartiles', 'ratio', 'memory, MiB', 'file, MB'):
        table.add_column(name, justify='right')
    table.add_column('failed', overflow='fold')
    first = rows[0].quartiles[1] if rows[0].times else None
    for row in rows:
        table.add_row(Path(row.job.model).stem, row.job.form, *cells(row, first), row.failure)
    Console(width=200).print(table)


def cells(row: Row, first: float | None) -> list[str]:
    """A row's numbers as the table shows them."""
    if not row.times:
        return [''] * 5
    low, median, high = row.quartiles
    return [
        f'{1e3 * median:.1f}',
        f'{1e3 * low:.1f} - {1e3 * high:.1f}',
        f'{median / first:.2f}' if first else '',
        f'{row.memory / 2**20:.0f}',
        f'{row.file / 1e6:.1f}' if row.file else '',
    ]


if __name__ == '__main__':
    main()
