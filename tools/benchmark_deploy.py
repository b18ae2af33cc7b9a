"""Compare exported models with PyTorch on a CPU: time, memory and file size, by engine and precision.

A model is named as in tools/benchmark.py: a config (CONFIG.py or PACKAGE::CONFIG.py), one of our backbones
(mpvit_small), or MODULE:CALLABLE. It has random weights. Each is measured in every form:

    torch, torch@compile                   as mmdet and mmseg run it; compiled: its backbone
    onnxruntime, onnxruntime@int8          the exported file, and in integers by onnxruntime's quantiser
    openvino, @bf16, @int8, @int8+bf16     the exported file, and in integers by NNCF

    python tools/benchmark_deploy.py mpvit_small regionvit_small pyramid_tnt_small --json backbones.json
    python tools/benchmark_deploy.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py configs/maskrcnn_mpvit_s.py \
        --part model --json detectors.json

A backbone's time is that of its maps. A whole model's is from an image to its boxes, masks and classes in the image's
pixels; detectors get a score threshold at which they find some boxes. Memory is what the process grows by at most, with
the weights and without PyTorch and onnxruntime themselves, until the end of the first run; compiling does not count.

Files are recorded at the size that is measured, so that models whose graphs hold at one size only can take part. A made
image calibrates the integers, which is enough for time, and not for accuracy.

Each measurement has a process of its own. The first one is what ratios refer to. Each row is printed when it is there,
and --json is written anew. A form that fails gets a row with the reason; the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from time import perf_counter
from typing import Any

import benchmark
import numpy as np
import torch
from mmengine.model import revert_sync_batchnorm
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from mmvit.commands import check_folder
from mmvit.deploy import exporter, files
from mmvit.deploy.graphs import graph_of
from mmvit.deploy.runtime import ENGINES, Model
from mmvit.environment import installed_version
from mmvit.models.base import Backbone

try:
    from mmvit.deploy import proof, smaller
except ImportError as error:
    sys.exit(f"error: {error}: run `pip install 'mmvit[deploy]'`, or 'mmvit[openvino]' for both engines")

TORCH = ('torch', 'torch@compile')
FORMS = (*TORCH, 'onnxruntime', 'onnxruntime@int8', 'openvino', 'openvino@bf16', 'openvino@int8', 'openvino@int8+bf16')


@dataclass(frozen=True)
class Job(benchmark.Job):
    """One form of one model.

    Attributes:
        form: One of ``FORMS``.
        repeats: Runs that are timed.
        recorded: The exported file of the model, in float32.
    """

    form: str = 'torch'
    repeats: int = 5
    recorded: Path = Path()

    @property
    def file(self) -> Path:
        """The exported file of the form."""
        if 'int8' not in self.form:
            return self.recorded
        own = self.form.startswith('openvino')
        return self.recorded.with_suffix('.xml') if own else smaller.beside(self.recorded, 'int8')

    @property
    def image(self) -> np.ndarray:
        return proof.made_image(*self.size)


@dataclass(frozen=True)
class Row:
    """What was measured of a job, or why nothing was.

    Attributes:
        times: Seconds of each run.
        memory: Bytes by which the process grew at most.
        file: Bytes of the exported file.
        failure: The reason.
    """

    job: Job
    times: tuple[float, ...] = ()
    memory: int = 0
    file: int = 0
    failure: str = ''

    @property
    def cells(self) -> list[str]:
        """As the table shows them: milliseconds and their quartiles, MiB, MB."""
        if not self.times:
            return [''] * 4
        low, median, high = (1e3 * seconds for seconds in np.percentile(self.times, [25, 50, 75]))
        file = f'{self.file / 1e6:.1f}' if self.file else ''
        return [f'{median:.1f}', f'{low:.1f} - {high:.1f}', f'{self.memory / 2**20:.0f}', file]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times are in seconds, sizes in bytes."""
        names = ('form', 'part', 'size', 'threads')
        job = {'model': self.job.name, **{name: getattr(self.job, name) for name in names}}
        return {**job, 'times': self.times, 'memory': self.memory, 'file': self.file, 'failure': self.failure}


def main() -> None:
    sys.path.append('')  # MODULE:CALLABLE may name a file here
    args, jobs = parse_command()
    engines = {name: installed_version(name) for name in ('onnxruntime', 'openvino', 'nncf')}
    environment = {**benchmark.describe_environment(args), **engines}
    print('\n'.join(f'{key}: {value}' for key, value in environment.items()), flush=True)
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for number, plain in enumerate(jobs):
            for form in args.forms:
                job = replace(plain, form=form, recorded=Path(folder, f'{number}.onnx'))
                rows.append(measured(job))
                print(f'{job.short_name} {form}: {rows[-1].failure or " | ".join(rows[-1].cells)}', flush=True)
                if args.json:
                    data = {'environment': environment, 'results': [row.as_dict() for row in rows]}
                    benchmark.replace_file(args.json, json.dumps(data, indent=2) + '\n')
    print_table(rows)
    if failed := sum(bool(row.failure) for row in rows):
        sys.exit(f'{failed} of {len(rows)} measurements failed')


def parse_command() -> tuple[argparse.Namespace, list[Job]]:
    """The command line and its models, each known to be there."""
    parser = make_parser()
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ('part', 'size', 'threads', 'repeats')}
    jobs = [Job(name, **settings) for name in args.models]
    try:
        if min(args.repeats, args.threads) < 1:
            raise ValueError('--repeats and --threads must be at least 1')
        for job in jobs:
            if job.name.startswith('timm:'):
                raise ValueError(f'{job.name}: models of timm are not exported here')
            benchmark.find_builder(job)
            if job.part == 'model' and not job.name.endswith('.py'):
                raise ValueError(f'{job.name}: --part model needs a config')
        for form in args.forms:
            suffix = '.xml' if form.startswith('openvino') else '.onnx'
            if form not in TORCH:
                exporter.check_target(Path(gettempdir(), f'mmvit-benchmark{suffix}'), integers='int8' in form)
        if args.json:
            check_folder(args.json.parent)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    return args, jobs


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help='configs or names, as above')
    add('--forms', nargs='+', choices=FORMS, default=FORMS, metavar='FORM', help='default: all')
    add('--part', choices=['backbone', 'model'], default='backbone', help='of a config (default: %(default)s)')
    add('--size', type=benchmark.parse_size, default=(800, 1333), metavar='HxW', help='default: 800x1333')
    add('--repeats', type=int, default=5, help='timed runs (default: %(default)s)')
    add('--threads', type=int, default=torch.get_num_threads(), help='default: %(default)s')
    add('--json', type=Path, metavar='FILE', help='write everything measured')
    parser.set_defaults(device='cpu', neighbours=0)
    return parser


def measured(job: Job) -> Row:
    """The row of a job. What is missing of its files is written first."""
    steps = [] if job.form in TORCH else [made(record, replace(job, form='onnxruntime'))]
    if 'int8' in job.form:
        steps.append(made(quantise, replace(job, form=job.form.removesuffix('+bf16'))))
    failures = [row.failure for row in steps if row.failure]
    return Row(job, failure=failures[0]) if failures else attempt(measure, job)


def attempt(function: Callable[[Job], Row], job: Job) -> Row:
    """What a function gives in a process of its own, or a row that says why it failed."""
    try:
        return benchmark.in_fresh_process(function, job)
    except Exception as error:
        return Row(job, failure=benchmark.describe_error(error))


made = cache(attempt)  # a file is made once, or fails once


def record(job: Job) -> Row:
    """Write the file of a model."""
    model = load(job)
    graph = Maps(model) if job.part == 'backbone' and not isinstance(model, Backbone) else graph_of(model)
    metadata = {}
    if job.part == 'model':
        config = benchmark.load_config(job.name)
        metadata = {**exporter.describe(model, graph, config, None, None), 'resize': None}
    exporter.write(graph, job.recorded, metadata, job.size)
    return Row(job)


def quantise(job: Job) -> Row:
    """Write the file in integers beside the other one."""
    make = smaller.to_openvino if job.file.suffix == '.xml' else smaller.quantise
    make(job.recorded, [job.image])
    return Row(job)


class Maps(nn.Module):
    """A backbone that is not ours, as a graph that takes one image at a time."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.outputs = tuple(f'stage{i}' for i in backbone.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(image))


def measure(job: Job) -> Row:
    """To be called in a fresh process."""
    torch.set_num_threads(job.threads)
    runs: list[Callable[[], Any]] = []
    weights = file = 0
    if job.form in TORCH:
        model = load(job)
        weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
        runs.append(in_torch(job, model))
        if job.form == 'torch@compile':
            runs[0]()
    else:
        file = files.size_of(job.file)

    def first_run() -> None:
        if not runs:
            runs.append(in_engine(job))
        runs[0]()

    memory = weights + benchmark.peak_memory(first_run, 'cpu')
    return Row(job, tuple(seconds(runs[0]) for _ in range(job.repeats)), memory, file)


def seconds(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def load(job: Job) -> Any:
    """The job's model or backbone in eval mode; of a detector one that finds some boxes."""
    torch.manual_seed(0)
    model: Any = revert_sync_batchnorm(benchmark.find_builder(job)()).requires_grad_(False)
    model.eval()  # Swin's returns nothing
    return finding(model, job.image) if job.part == 'model' and not hasattr(model, 'decode_head') else model


def finding(model: Any, image: np.ndarray) -> Any:
    """The detector with a score threshold at which it finds some boxes in an image, in most cases as many as it may.

    A lower one would find no more, but NMS would get all classes of all proposals.
    """
    model = proof.lenient(model)
    scores = proof.computed(model, image)['scores']
    proof.set_threshold(model, 0.999 * float(scores.min(initial=1)))
    return model


def in_torch(job: Job, model: Any) -> Callable[[], Any]:
    """What runs the job once in PyTorch."""
    if job.form == 'torch@compile':
        backbone = model.backbone if job.part == 'model' else model
        model = benchmark.with_backbone(model, torch.compile(backbone, dynamic=False))
    if job.part == 'model':
        return partial(proof.computed, model, job.image)
    return partial(torch.no_grad()(model), proof.batch_of(job.image))


def in_engine(job: Job) -> Callable[[], Any]:
    """What runs the job once with an engine."""
    engine, _, options = job.form.partition('@')
    choice = (engine, job.threads, 'bf16' if 'bf16' in options else 'f32')
    if job.part == 'model':
        return partial(Model(job.file, *choice), job.image[..., ::-1])
    return partial(ENGINES[engine](str(job.file), *choice[1:])[0], proof.batch_of(job.image).numpy())


def print_table(rows: Sequence[Row]) -> None:
    table = Table('model', 'form', box=box.MARKDOWN)
    for name in ('ms', 'quartiles', 'memory, MiB', 'file, MB', 'ratio'):
        table.add_column(name, justify='right')
    table.add_column('failed', overflow='fold')
    for row in rows:
        both = row.times and rows[0].times
        ratio = f'{np.median(row.times) / np.median(rows[0].times):.2f}' if both else ''
        table.add_row(row.job.short_name, row.job.form, *row.cells, ratio, Text(row.failure))
    Console(width=200).print(table)


if __name__ == '__main__':
    main()
