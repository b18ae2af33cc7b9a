"""Compare models side by side: time, memory, work, and how near they come to what this machine can do.

A model is a name and any options, as in ``mpvit_small@bf16@compile+fuse``. Names:

    FAMILY_ARCH        ours: mpvit_small, regionvit_small_w14_peg, pyramid_tnt_small, ...
    CONFIG.py          a config file, or one that a package ships: mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py
    timm:MODEL         timm:convnext_tiny
    MODULE:CALLABLE    anything importable; called without arguments, it returns an nn.Module that takes images

Options: @fp32 @bf16 @fp16 (weights and input), @bf16-amp @fp16-amp (autocast), @eager @compile @graph (CUDA graph),
+fuse (its backbone's fuse()), +cp (builds it with with_cp=True), +fit (at most --threads: as many as other processes
leave CPUs). The first model is the one that ratios refer to.

    python tools/benchmark.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py mpvit_small mpvit_small@bf16
    python tools/benchmark.py mpvit_small mpvit_small+cp --step train --sizes 512
    python tools/benchmark.py mpvit_small regionvit_small --sizes 400x667 800x1333 1600x2666 --plot area.png
    python tools/benchmark.py configs/maskrcnn_mpvit_s.py --part model --json detector.json
    python tools/benchmark.py pyramid_tnt_small --sizes 256 --batch 8 --profile
    python tools/benchmark.py mpvit_small mpvit_small+fit --time-only --neighbours 1

Rounds are interleaved: each calls every model, in a new order. A measurement's first call is not counted (it finds
another model's data in the caches). Training is a forward and a backward pass, without the optimizer. A whole detector
runs up to its heads' outputs: with random weights, what comes after them is no measure of anything. Multiply-adds are
those of the eager program; traffic is what its operators read and write if nothing stays in a cache, so a share of
the copy ceiling above 100% is time that caches or fusion saved.

Each round's times are printed when it ends, and --json is written anew. A model that fails gets a row with the reason;
the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import gc
import json
import pkgutil
import platform
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.benchmark import Timer

from mmvit.environment import describe_operators, installed_versions
from mmvit.flops import Work, count_work
from mmvit.models.families import FAMILIES
from mmvit.training.threads import FittingThreads

OURS: dict[str, tuple[Any, str]] = {
    f'{cls.family_name}_{arch}': (cls, arch) for cls in FAMILIES for arch in cls.arch_zoo
}
# Type of the weights and of the input, and what autocast computes in.
DTYPES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    'fp32': (torch.float32, None),
    'bf16': (torch.bfloat16, None),
    'fp16': (torch.float16, None),
    'bf16-amp': (torch.float32, torch.bfloat16),
    'fp16-amp': (torch.float32, torch.float16),
}
MODES = ('eager', 'compile', 'graph')
OPTIONS: dict[str, dict[str, Any]] = {
    **{f'@{dtype}': {'dtype': dtype} for dtype in DTYPES},
    **{f'@{mode}': {'mode': mode} for mode in MODES},
    '+fuse': {'fuse': True},
    '+cp': {'with_cp': True},
    '+fit': {'fit_threads': True},
}
# Published box AP of Mask R-CNN 1x on COCO, by the papers (MPViT, RegionViT) and mmdet's model zoo (the others): none
# was measured here. A config's backbone goes by the config's stem.
PUBLISHED_BOX_AP: dict[str, float] = {
    'mpvit_tiny': 42.2,
    'mpvit_xsmall': 44.2,
    'mpvit_small': 46.4,
    'mpvit_base': 48.2,
    'maskrcnn_mpvit_t': 42.2,
    'maskrcnn_mpvit_xs': 44.2,
    'maskrcnn_mpvit_s': 46.4,
    'maskrcnn_mpvit_b': 48.2,
    'regionvit_small': 42.5,
    'regionvit_small_w14': 43.5,
    'regionvit_small_w14_peg': 44.2,
    'regionvit_base': 43.5,
    'regionvit_base_w14': 44.5,
    'regionvit_base_w14_peg': 45.4,
    'maskrcnn_regionvit_s': 42.5,
    'mask-rcnn_swin-t-p4-w7_fpn_1x_coco': 42.7,
    'mask-rcnn_r50_fpn_1x_coco': 38.2,
}
M_MMAP_THRESHOLD = -3  # of malloc.h
BOXES = 8  # objects in each image of a detector's training batch


@dataclass(frozen=True)
class Job:
    """One model under one set of conditions; ``size`` is (height, width) in pixels."""

    name: str
    dtype: str = 'fp32'
    mode: str = 'eager'
    fuse: bool = False
    with_cp: bool = False
    fit_threads: bool = False
    size: tuple[int, int] = (800, 1333)
    batch: int = 1
    step: str = 'forward'
    part: str = 'backbone'
    device: str = 'cpu'
    threads: int = 1

    @property
    def short_name(self) -> str:
        return Path(self.name).stem if self.name.endswith('.py') else self.name

    @property
    def label(self) -> str:
        """Short name and the options that differ from the plain model's."""
        plain = asdict(Job(self.name))
        return self.short_name + ''.join(
            text for text, setting in OPTIONS.items() for key, value in setting.items()
            if getattr(self, key) == value != plain[key]
        )  # fmt: skip

    @property
    def compute_dtype(self) -> torch.dtype:
        weights, autocast = DTYPES[self.dtype]
        return autocast or weights


@dataclass(frozen=True)
class Footprint:
    """What one step takes: bytes of parameters and buffers, bytes beyond them and the input, and its work."""

    weights: int
    memory: int
    work: Work


@dataclass(frozen=True)
class Ceilings:
    """The machine's best: FLOP/s of a large square matrix product, bytes/s read and written by a large copy."""

    gemm: float
    copy: float


@dataclass(frozen=True)
class Result:
    """A job's seconds per step in each round, and each round's ratio to the first model's; none if that one failed."""

    job: Job
    times: list[float]
    ratios: list[float]
    footprint: Footprint | None = None
    ceilings: Ceilings | None = None

    @property
    def quartiles(self) -> list[float]:
        """Lower quartile, median and upper quartile of the seconds per step."""
        return np.percentile(self.times, [25, 50, 75]).tolist()

    @property
    def shares(self) -> tuple[float, float] | None:
        """Shares of the ceilings of matrix products and of copying."""
        if self.footprint is None or self.ceilings is None:
            return None
        work, seconds = self.footprint.work, self.quartiles[1]
        return 2 * work.multiply_adds / seconds / self.ceilings.gemm, work.traffic / seconds / self.ceilings.copy

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times are in seconds, memory in bytes."""
        data = {**asdict(self), 'label': self.job.label, 'quartiles': self.quartiles}
        return {**data, 'ratio': float(np.median(self.ratios)) if self.ratios else None, 'shares': self.shares}


@dataclass(frozen=True)
class Failure:
    """A job that could not be measured, and why."""

    job: Job
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), 'label': self.job.label}


Row = Result | Failure


def main() -> None:
    sys.path.append('')  # MODULE:CALLABLE may name a file here
    args, jobs = parse_command()
    torch.set_num_threads(args.threads)
    environment = describe_environment(args)
    print('\n'.join(f'{key}: {value}' for key, value in environment.items()))
    dtypes = [] if args.time_only else dict.fromkeys(job.compute_dtype for job in jobs)
    ceilings = {dtype: measure_ceilings(dtype, args.device) for dtype in dtypes}
    for dtype, ceiling in ceilings.items():
        print(f'ceilings in {dtype}: {ceiling.gemm / 1e9:.1f} GFLOP/s, copy {ceiling.copy / 1e9:.1f} GB/s')
    rows: list[Row] = []

    def save(new: Sequence[Row]) -> None:
        if args.json:
            data = {'environment': environment, 'results': [row.as_dict() for row in [*rows, *new]]}
            replace_file(args.json, json.dumps(data, indent=2) + '\n')

    with neighbours(args.neighbours):
        for size in args.sizes:
            rows += benchmark([replace(job, size=size) for job in jobs], args, ceilings, save)
    print_table(rows)
    results = [row for row in rows if isinstance(row, Result)]
    if args.plot and results:
        title = f'{args.part}, {args.step}, batch {args.batch}, on {environment["device"]}'
        figure = plot_area(results, title) if len(args.sizes) > 1 else plot_ap(results, title)
        figure.savefig(args.plot, dpi=150, bbox_inches='tight')
    if len(results) < len(rows):
        sys.exit(f'{len(rows) - len(results)} of {len(rows)} measurements failed')


@contextmanager
def neighbours(count: int) -> Iterator[list[subprocess.Popen]]:
    """This many other processes, each of which keeps a CPU busy."""
    processes = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def replace_file(path: Path, text: str) -> None:
    """Write a file beside the old one, then put it in its place: one of the two is always whole."""
    new = path.with_name(f'{path.name}.new')
    new.write_text(text)
    new.replace(path)


def parse_command() -> tuple[argparse.Namespace, list[Job]]:
    """The command line and the jobs it names, each known to have a model."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        jobs = [parse_model(text, args) for text in args.models]
        for job in jobs:
            find_builder(job)
    except ValueError as error:
        parser.error(str(error))
    if args.plot and len(args.sizes) == 1 and not any(job.short_name in PUBLISHED_BOX_AP for job in jobs):
        parser.error('--plot of one size draws published AP, which none of these models has; give several --sizes')
    return args, jobs


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help='names with options, as above')
    add('--part', choices=['backbone', 'model'], default='backbone', help='of a config or timm model')
    add('--step', choices=['forward', 'train'], default='forward')
    add('--sizes', nargs='+', type=parse_size, default=[(800, 1333)], metavar='HxW', help='default: 800x1333')
    add('--batch', type=int, default=1, help='images (default: %(default)s)')
    add('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--dtype', choices=DTYPES, default='fp32', help='of models without such an option (default: %(default)s)')
    add('--mode', choices=MODES, default='eager', help='of models without such an option (default: %(default)s)')
    add('--rounds', type=int, default=10, help='default: %(default)s')
    add('--warmup', type=int, default=2, help='calls of each model before the rounds (default: %(default)s)')
    add('--min-time', type=float, default=0.2, help='seconds that a measurement takes at least (default: %(default)s)')
    add('--threads', type=int, default=torch.get_num_threads(), help='of the CPU (default: %(default)s)')
    add('--neighbours', type=int, default=0, help='other processes that keep a CPU busy each (default: %(default)s)')
    add('--time-only', action='store_true', help='no memory, work and ceilings')
    add('--profile', action='store_true', help='the 20 operators that take longest in each model')
    add('--json', type=Path, metavar='FILE', help='write everything measured')
    add('--plot', type=Path, metavar='FILE', help='draw time against published AP or, of several sizes, against area')
    return parser


def parse_size(text: str) -> tuple[int, int]:
    """'800x1333' or, square, '224' -> (height, width)."""
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is no size: write HEIGHTxWIDTH, or one number for a square')
    return int(match[1]), int(match[2] or match[1])


def parse_model(text: str, args: argparse.Namespace) -> Job:
    """A model as named on the command line, under the conditions of the whole command.

    Raises:
        ValueError: Its options contradict each other or the conditions.
    """
    pattern = '|'.join(re.escape(option) for option in sorted(OPTIONS, key=len, reverse=True))
    name, suffix = re.fullmatch(rf'(.+?)((?:{pattern})*)', text).groups()  # type: ignore[union-attr]
    settings: dict[str, Any] = {}
    for option in re.findall(pattern, suffix):
        if settings.keys() & OPTIONS[option].keys():
            raise ValueError(f'{text}: {option} contradicts an option before it')
        settings |= OPTIONS[option]
    shared = {key: getattr(args, key) for key in ('dtype', 'mode', 'batch', 'step', 'part', 'device', 'threads')}
    job = Job(name, **{**shared, **settings})
    if job.mode == 'graph' and (job.device, job.step) != ('cuda', 'forward'):
        raise ValueError(f'{text}: a CUDA graph needs --device cuda and --step forward')
    return job


def find_builder(job: Job) -> Callable[[], nn.Module]:
    """What builds the job's model, with random weights.

    Raises:
        ValueError: There is no such model, or it has no such part or option.
    """
    if job.name in OURS:
        cls, arch = OURS[job.name]
        if job.part == 'model':
            raise ValueError(f'{job.name} is a backbone: --part model needs a config')
        return partial(cls, arch, with_cp=job.with_cp)
    if job.name.endswith('.py'):
        return partial(build_from_config, load_config(job.name), job)
    if job.with_cp:
        raise ValueError(f'{job.name}: +cp is for our backbones and those of configs')
    if job.name.startswith('timm:'):
        name = job.name.removeprefix('timm:')
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=5)
            raise ValueError(f'timm has no model {name!r}; names like it: {", ".join(near) or "none"}')
        return partial(timm.create_model, name, features_only=job.part == 'backbone')
    if ':' in job.name:
        try:
            return pkgutil.resolve_name(job.name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f'cannot import {job.name}: {error}') from error
    raise ValueError(
        f'no model {job.name!r}; ours are {", ".join(OURS)}; options are {" ".join(OPTIONS)}; '
        'others: CONFIG.py, PACKAGE::CONFIG.py, timm:MODEL, MODULE:CALLABLE'
    )


def load_config(path: str) -> Config:
    package = path.split('::', maxsplit=1)[0] if '::' in path else None
    if package and find_spec(package) is None:
        raise ValueError(f'{path}: {package} is not installed')
    try:
        config = get_config(path) if package else Config.fromfile(path)
    except FileNotFoundError as error:
        raise ValueError(f'{path}: {error}') from error
    if 'model' not in config:
        raise ValueError(f'{path} has no model')
    return config


def build_from_config(config: Config, job: Job) -> nn.Module:
    if job.with_cp:
        config.model.backbone.with_cp = True
    model = config.model if job.part == 'model' else config.model.backbone
    return MODELS.build({**model, '_scope_': config.get('default_scope') or 'mmdet'})


def benchmark(
    jobs: Sequence[Job],
    args: argparse.Namespace,
    ceilings: dict[torch.dtype, Ceilings],
    save: Callable[[Sequence[Row]], None],
) -> list[Row]:
    """Measure jobs against each other; print their profiles if that was asked for.

    ``save`` gets what is there after each round, and at the end. A job that fails is left out from then on.
    """
    failures: dict[int, Failure] = {}

    def attempt(i: int, function: Callable[[], Any]) -> Any:
        """What the function gives; None if it, or something of this job before it, failed."""
        if i in failures:
            return None
        try:
            return function()
        except Exception as error:
            failures[i] = Failure(jobs[i], describe_error(error))
            print(f'{jobs[i].label} at {size_text(jobs[i])} failed: {failures[i].reason}', flush=True)
            return None

    def rows(times: Sequence[list[float]]) -> list[Row]:
        first = [] if 0 in failures else times[0]
        return [
            failures.get(i) or Result(job, own, ratios(own, first), footprint, ceilings.get(job.compute_dtype))
            for i, (job, own, footprint) in enumerate(zip(jobs, times, footprints, strict=True))
        ]

    def end_round(times: Sequence[list[float]]) -> None:
        done = [f'{jobs[i].label} {1e3 * own[-1]:.1f} ms' for i, own in enumerate(times) if i not in failures]
        count = max(len(own) for own in times)
        if done:
            print(f'{size_text(jobs[0])}, round {count} of {args.rounds}: {", ".join(done)}', flush=True)
        save(rows(times))

    footprints = [
        None if args.time_only else attempt(i, partial(in_fresh_process, measure_footprint, job))
        for i, job in enumerate(jobs)
    ]
    torch.compiler.reset()  # what was compiled for one size shall not make the next one's shapes dynamic
    runs = [attempt(i, partial(warmed_up, job, args.warmup)) for i, job in enumerate(jobs)]
    fitting = FittingThreads()

    def measure(job: Job, run: Callable[[], Any]) -> float:
        return measure_seconds(run, fitting.fit() if job.fit_threads else job.threads, args.min_time)

    measurements = [partial(attempt, i, partial(measure, *pair)) for i, pair in enumerate(zip(jobs, runs, strict=True))]
    times = interleave(measurements, args.rounds, end_round)
    if args.profile:
        for i, (job, run) in enumerate(zip(jobs, runs, strict=True)):
            if i not in failures:
                print(f'\n{job.label} at {size_text(job)}\n{profile_table(run, job.device)}')
    return rows(times)


def describe_error(error: Exception) -> str:
    """Its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


def warmed_up(job: Job, calls: int) -> Callable[[], None]:
    return Task(job).warm_up(calls)


def interleave(
    measurements: Sequence[Callable[[], float | None]],
    rounds: int,
    end_round: Callable[[list[list[float]]], None] = lambda values: None,
) -> list[list[float]]:
    """Make every measurement once in each round, in an order of its own; what each gave, round by round.

    One that gives None has failed, and adds nothing.
    """
    order = random.Random(0)
    values: list[list[float]] = [[] for _ in measurements]
    for _ in range(rounds):
        for i in order.sample(range(len(measurements)), len(measurements)):
            value = measurements[i]()
            if value is not None:
                values[i].append(value)
        end_round(values)
    return values


def ratios(times: Sequence[float], first: Sequence[float]) -> list[float]:
    """A model's times against the first model's, round by round, so that what slows a whole round drops out.

    None if the first model failed.
    """
    return [own / reference for own, reference in zip(times, first, strict=True)] if first else []


def measure_seconds(run: Callable[[], Any], threads: int, min_time: float) -> float:
    """Median seconds of a call; the GPU is waited for."""
    timer = Timer('run()', globals={'run': run}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=min_time).median


def measure_ceilings(dtype: torch.dtype, device: str) -> Ceilings:
    """The best of some large products in this type, and of some large copies."""
    side, count = (2048, 1 << 26) if device == 'cpu' else (8192, 1 << 28)
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    source, target = (torch.ones(count, device=device) for _ in range(2))

    def best(run: Callable[[], Any]) -> float:
        timer = Timer('run()', globals={'run': run}, num_threads=torch.get_num_threads())
        return min(timer.blocked_autorange(min_run_time=0.5).times)

    gemm = 2 * side**3 / best(lambda: F.linear(a, b))
    return Ceilings(gemm, 2 * source.nbytes / best(lambda: target.copy_(source)))


def in_fresh_process(function: Callable[[Any], Any], job: Any) -> Any:
    """``function(job)`` in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, job).result()


def measure_footprint(job: Job) -> Footprint:
    """To be called in a fresh process, where no freed memory is at hand to be used again."""
    if job.mode == 'compile' and not hasattr(torch.compiler, 'set_stance'):
        raise RuntimeError(f"counting a compiled model's work needs PyTorch 2.6, not {torch.__version__}")
    torch.set_num_threads(job.threads)
    # Pages of their own for all big buffers: how free memory happens to lie is no part of what a step needs.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**17)
    task = Task(job)
    if job.mode == 'compile':
        task.step()  # the compiler needs far more memory than what it compiles
    memory = peak_memory(task.capture if job.mode == 'graph' else task.step, job.device)
    with torch.compiler.set_stance('force_eager') if job.mode == 'compile' else nullcontext():
        work = count_work(task.step)
    return Footprint(task.weights, memory, work)


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """Bytes by which the memory in use grows at most during a call: the allocator's on a GPU, else the resident set."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed counts as new if it is used again
    Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak is now what is resident
    before = resident('VmRSS')
    run()
    return resident('VmHWM') - before


def resident(key: str) -> int:
    """This process's resident set in bytes: now ('VmRSS') or at its peak ('VmHWM')."""
    match = re.search(rf'^{key}:\s+(\d+) kB$', Path('/proc/self/status').read_text(), re.MULTILINE)
    assert match, f'no {key} in /proc/self/status'
    return 1024 * int(match[1])


class Task:
    """A job's model and input.

    Raises:
        ValueError: The job asks for a ``fuse()`` that the model does not have.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        torch.manual_seed(0)
        weights, self.autocast = DTYPES[job.dtype]
        model = revert_sync_batchnorm(find_builder(job)())
        model.train(job.step == 'train')
        backbone: Any = model.backbone if isinstance(model, BaseModel) else model
        if job.fuse:
            if not callable(getattr(backbone, 'fuse', None)):
                raise ValueError(f'{job.name}: +fuse needs a fuse(), which {type(backbone).__name__} does not have')
            backbone = backbone.fuse()
            model = with_backbone(model, backbone)
        if weights != torch.float32:
            mend_window_masks(model)
        self.model = model.to(job.device, weights)
        self.weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
        if isinstance(model, BaseModel):
            images, samples = detector_inputs(model, job)
            self.inputs: tuple = (images.to(weights), samples, 'loss' if job.step == 'train' else 'tensor')
        else:
            self.inputs = (torch.rand(job.batch, 3, *job.size, device=job.device).to(weights),)
        if job.mode == 'compile':
            self.model = with_backbone(model, torch.compile(backbone, dynamic=False))  # mmdet's heads do not compile

    def step(self) -> None:
        """One forward pass, or a forward and a backward pass that leaves no gradients."""
        with (
            torch.set_grad_enabled(self.job.step == 'train'),
            torch.autocast(self.job.device, self.autocast, enabled=self.autocast is not None),
        ):
            out = self.model(*self.inputs)
            loss = self.loss(out) if self.job.step == 'train' else None
        if loss is not None:
            loss.backward()
            self.model.zero_grad(set_to_none=True)

    def loss(self, out: Any) -> Tensor:
        if isinstance(self.model, BaseModel):
            return self.model.parse_losses(out)[0]
        return torch.stack([x.mean() for x in ([out] if isinstance(out, Tensor) else out)]).sum()

    def warm_up(self, calls: int) -> Callable[[], None]:
        """Make some steps that nobody times; what shall be timed."""
        for _ in range(calls):
            self.step()
        return self.capture() if self.job.mode == 'graph' else self.step

    def capture(self) -> Callable[[], None]:
        """Record the step as a CUDA graph; its replay."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step()  # what is set up at the first call must not be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


def mend_window_masks(model: nn.Module) -> None:
    """Make Swin of mmdet and mmseg run in 16 bits: its windows' masks are float32, and so would its attention be."""

    def cast(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = kwargs.get('mask')
        return args, kwargs if mask is None else {**kwargs, 'mask': mask.to(args[0].dtype)}

    for module in model.modules():
        if type(module).__name__ == 'WindowMSA':
            module.register_forward_pre_hook(cast, with_kwargs=True)


def with_backbone(model: nn.Module, backbone: Any) -> nn.Module:
    """The model with this backbone in it; the backbone itself if the model is nothing else."""
    if not isinstance(model, BaseModel):
        return backbone
    model.backbone = backbone
    return model


def detector_inputs(model: BaseModel, job: Job) -> tuple[Tensor, list]:
    """A batch of random images (B, 3, H, W) with random objects, for a model of mmdet or mmseg."""
    if any(cls.__module__.startswith('mmseg.') for cls in type(model).__mro__):
        from mmseg.structures import SegDataSample  # noqa: PLC0415 (an optional package)

        labels = PixelData(data=torch.zeros(1, *job.size, dtype=torch.long, device=job.device))
        sample = SegDataSample(metainfo=dict(img_shape=job.size, ori_shape=job.size), gt_sem_seg=labels)
        return torch.rand(job.batch, 3, *job.size, device=job.device), [sample] * job.batch
    from mmdet.testing import demo_mm_inputs  # noqa: PLC0415 (an optional package)

    objects = dict(num_items=[BOXES] * job.batch, num_classes=2, with_mask=True)
    data = demo_mm_inputs(job.batch, (3, *job.size), device=job.device, **objects)
    data = model.data_preprocessor(data, job.step == 'train')
    return data['inputs'], data['data_samples']


def profile_table(run: Callable[[], Any], device: str) -> str:
    """Where the time of one call goes, by operator."""
    with profile() as profiler:
        run()
    return profiler.key_averages().table(sort_by=f'self_{device}_time_total', row_limit=20)


def describe_environment(args: argparse.Namespace) -> dict[str, Any]:
    if args.device == 'cuda':
        device = torch.cuda.get_device_name()
    else:
        models = re.findall(r'^model name\s*: (.+)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE)
        device = f'{models[0] if models else platform.machine()}, threads {args.threads}'
    return {
        'device': device,
        'CPU capability': torch.backends.cpu.get_cpu_capability(),
        'CPU threads': args.threads,
        'busy neighbours': args.neighbours,
        'fp32 matrix products': torch.get_float32_matmul_precision(),
        'operators': describe_operators(),
        **installed_versions(),
        'torch': torch.__version__,
    }


def size_text(job: Job) -> str:
    return 'x'.join(map(str, job.size))


def print_table(rows: Sequence[Row]) -> None:
    table = Table('model', 'size', box=box.MARKDOWN)
    names = ['ms', 'quartiles', 'ratio']
    if any(isinstance(row, Result) and row.footprint for row in rows):
        names += ['memory, MiB', 'weights, MiB', 'G multiply-adds', 'of GEMM', 'of copy']
    for name in names:
        table.add_column(name, justify='right')
    if any(isinstance(row, Failure) for row in rows):
        table.add_column('failed', overflow='fold')
    for row in rows:
        cells: list[str | Text] = (
            [*[''] * len(names), Text(row.reason)] if isinstance(row, Failure) else [*result_cells(row)]
        )
        table.add_row(row.job.label, size_text(row.job), *cells)
    Console(width=200).print(table)


def result_cells(result: Result) -> list[str]:
    """Its numbers as the table shows them."""
    low, median, high = (1e3 * seconds for seconds in result.quartiles)
    ratio = f'{np.median(result.ratios):.2f}' if result.ratios else ''
    cells = [f'{median:.1f}', f'{low:.1f} - {high:.1f}', ratio]
    if result.footprint and result.shares:
        sizes = (result.footprint.memory, result.footprint.weights)
        cells += [f'{size / 2**20:.0f}' for size in sizes]
        cells += [f'{result.footprint.work.multiply_adds / 1e9:.1f}', *(f'{share:.0%}' for share in result.shares)]
    return cells


def plot_ap(results: Sequence[Result], title: str) -> Figure:
    """Published box AP against time, for the models that have one."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.add_subplot(
        title=f'{title}\n{size_text(results[0].job)}',
        xlabel='time per step, ms',
        ylabel='box AP of Mask R-CNN 1x on COCO (published)',
    )
    for i, result in enumerate(r for r in results if r.job.short_name in PUBLISHED_BOX_AP):
        low, median, high = (1e3 * seconds for seconds in result.quartiles)
        ap = PUBLISHED_BOX_AP[result.job.short_name]
        axes.errorbar(median, ap, xerr=[[median - low], [high - median]], fmt=marker(i), label=result.job.label)
    axes.set_xlim(left=0)
    axes.margins(y=0.1)
    return finish(figure)


def plot_area(results: Sequence[Result], title: str) -> Figure:
    """Time and, if it was measured, memory against the area of the input."""
    panels: dict[str, Callable[[Result], float]] = {'time per step, ms': lambda result: 1e3 * result.quartiles[1]}
    if results[0].footprint:
        panels['memory beyond weights, MiB'] = lambda r: r.footprint.memory / 2**20 if r.footprint else 0
    areas = {size_text(result.job): prod(result.job.size) for result in results}
    labels = dict.fromkeys(result.job.label for result in results)
    figure = Figure(figsize=(6 * len(panels) + 1, 5), layout='constrained')
    figure.suptitle(title)
    for axes, (name, value) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for i, label in enumerate(labels):
            own = [result for result in results if result.job.label == label]
            points = [prod(result.job.size) for result in own]
            axes.plot(points, [value(result) for result in own], f'{marker(i)}-', label=label)
        axes.set(xlabel='size, spaced by area', ylabel=name, xlim=(0, None), ylim=(0, None))
        axes.set_xticks(list(areas.values()), list(areas), rotation=30, ha='right')
    return finish(figure)


def marker(index: int) -> str:
    return 'osD^vPX*<>'[index % 10]


def finish(figure: Figure) -> Figure:
    """Grids, and one legend below all panels, where it covers nothing."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(3, len(labels)), frameon=False)
    return figure


if __name__ == '__main__':
    main()
