"""What a GPU shows of mmvit: the tests that are marked `gpu`, then times and memory of networks.

    bash tools/gpu_report.sh [--rehearse] [--profile] [--only PATTERN] [--out FOLDER]

This takes hours, the most telling rows come first, and each is in FOLDER/report.json and report.md as soon as it is
known. A call takes at most nine minutes. The next call continues where it stopped.

--profile puts the operators that take longest in each network before the times. --only takes the rows in whose names a
regular expression is found. --rehearse goes through the same list on a CPU, with small images, without compiling and
without the slow tests.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from benchmark import Job, Task, describe_error, measure_seconds, peak_memory, replace_file
from gpu_floor import NETWORKS as COUNTED
from torch.autograd import DeviceType
from torch.profiler import profile
from write_tables import markdown

from mmvit.environment import report

CALL, LIMIT = 500, 180  # seconds that a call and a row take at most
TESTS = {
    'outputs of the authors': ['tests/test_official.py'],
    'recorded operators': ['tests/test_ops.py'],
    'mixed precision, graphs, waits, memory, operators': ['tests/test_gpu.py', '-k', 'not compiled'],
    'compiled MPViT': ['tests/test_gpu.py', '-k', 'compiled and mpvit'],
    'compiled RegionViT': ['tests/test_gpu.py', '-k', 'compiled and regionvit'],
    'compiled PyramidTNT': ['tests/test_gpu.py', '-k', 'compiled and pyramidtnt'],
    'steps of the recipes': ['tests/test_configs.py'],
    'steps of other heads of detectors': ['tests/test_heads.py'],
    'steps of other heads of segmenters': ['tests/test_heads_seg.py'],
}
NETWORKS = {
    **COUNTED,
    'PVTv2-B2': 'mmdet::pvt/retinanet_pvtv2-b2_fpn_1x_coco.py',
    'ResNet-50': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
}
OURS = {name: model for name, model in NETWORKS.items() if '::' not in model}
PLAIN = {f'straightforward {name}': f'plain:{model}' for name, model in OURS.items()}  # of tests/plain
NAMES = {model: name for name, model in {**NETWORKS, **PLAIN}.items()}
CONDITIONS = [('forward', 1), ('train', 2), ('forward', 16), ('train', 16)]  # with the number of images
HEADER = ['network', 'pass', 'images', 'type', 'mode', 'ms', 'MiB', 'x faster', 'x memory', 'x Swin-T', 'failed']

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rehearse', action='store_true')
    parser.add_argument('--profile', action='store_true')
    parser.add_argument('--only', default='', metavar='PATTERN')
    parser.add_argument('--out', type=Path, help='default: work_dirs/gpu/report, or work_dirs/gpu/rehearsal')
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        parser.error('PyTorch finds no GPU; --rehearse takes the CPU')
    if args.rehearse:
        os.environ['TORCH_COMPILE_DISABLE'] = '1'
    out = args.out or Path('work_dirs/gpu', 'rehearsal' if args.rehearse else 'report')
    end = time.monotonic() + CALL - LIMIT
    with worker() as measured:
        todo = [row for row in rows(args.rehearse, args.profile, measured) if re.search(args.only, row[0])]
        run_all(todo, Report(out), lambda: time.monotonic() > end)


def run_all(todo: list[tuple[str, Callable[[], Result]]], done: Report, is_over: Callable[[], bool]) -> None:
    """Fill the rows that are not there yet, until the time is over."""
    for key, run in todo:
        if key in done.results:
            continue
        if is_over():
            print(f'Call this again for more rows than the {len(done.results)} in {done.folder}')
            return
        done.add(key, run())
    print(f'All rows are in {done.folder}')


class Report:
    """The rows in a folder, which has them as JSON and as tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / 'report.json'
        folder.mkdir(parents=True, exist_ok=True)
        saved = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.environment: str = report()
        self.results: dict[str, Result] = saved.get('results', {})
        if saved and saved['environment'] != self.environment:
            sys.exit(f'{self.file} is of another environment: name another folder by --out')

    def add(self, key: str, result: Result) -> None:
        self.results[key] = result
        print(f'{key}: {result.get("failed", result)}', flush=True)
        data = {'environment': self.environment, 'results': self.results}
        replace_file(self.file, json.dumps(data, indent=2) + '\n')
        replace_file(self.folder / 'report.md', tables(self.environment, self.results))


def rows(
    is_rehearsal: bool, with_profiles: bool, measured: Callable[..., Result]
) -> Iterator[tuple[str, Callable[[], Result]]]:
    """The name of each row, and what gives its result, the most telling first."""
    device = 'cpu' if is_rehearsal else 'cuda'
    size = (64, 64) if is_rehearsal else (800, 1333)
    base = Job('', size=size, device=device, threads=torch.get_num_threads())
    for name, words in TESTS.items():
        yield f'test: {name}', partial(run_tests, words, device)
    for job in profiled_jobs(base) if with_profiles else ():
        yield f'operators: {title(job)}', partial(measured, worst_operators, job)
    for job in timed_jobs(base):
        yield f'time: {title(job)}', partial(measured, time_and_memory, job)


def profiled_jobs(base: Job) -> Iterator[Job]:
    for (step, batch), model in product(CONDITIONS[:2], NETWORKS.values()):
        yield replace(base, name=model, step=step, batch=batch, dtype=half(step))


def timed_jobs(base: Job) -> Iterator[Job]:
    """All that is timed. Compiling takes a minute for each network, so most of it comes last."""
    for is_half, mode in ((0, 'eager'), (1, 'eager'), (1, 'graph'), (1, 'compile'), (0, 'graph'), (0, 'compile')):
        for step, batch in CONDITIONS:
            if mode == 'graph' and (step, base.device) != ('forward', 'cuda'):
                continue
            job = replace(base, step=step, batch=batch, mode=mode, dtype=half(step) if is_half else 'fp32')
            plain = PLAIN if (is_half, mode) == (0, 'eager') else {}
            yield from (replace(job, name=model) for model in {**plain, **NETWORKS}.values())
            if (is_half, mode, step) == (1, 'eager', 'train'):
                yield from (replace(job, name=model, with_cp=True) for model in OURS.values())


def half(step: str) -> str:
    """The type in 16 bits: of all weights in a forward pass, and by autocast in training."""
    return 'bf16' if step == 'forward' else 'bf16-amp'


def title(job: Job) -> str:
    return f'{NAMES[job.name]}, {job.step}, {job.batch}, {job.dtype}, {job.mode}' + ', with_cp' * job.with_cp


def run_tests(words: list[str], device: str) -> Result:
    """What pytest says of the tests that are marked `gpu`, without TF32."""
    marked = 'gpu' if device == 'cuda' else 'gpu and not slow'
    command = [sys.executable, '-m', 'pytest', '-q', '-m', marked, *words]
    environment = {**os.environ, 'MMVIT_DEVICE': device, 'NVIDIA_TF32_OVERRIDE': '0'}
    streams: Any = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        done = subprocess.run(command, **streams, env=environment, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired as error:
        return {'failed': f'not done in {LIMIT} s', 'output': str(error.output)[-6000:]}
    lines = done.stdout.strip().splitlines() or ['']
    if done.returncode == 0:
        return {'tests': lines[-1]}
    return {'tests': lines[-1], 'failed': f'exit status {done.returncode}', 'output': done.stdout[-6000:]}


@contextmanager
def worker() -> Iterator[Callable[..., Result]]:
    """Calls functions in another process, which is used again until it fails: a GPU keeps some errors."""
    pools: list = []

    def call(function: Callable[..., Result], *args: Any) -> Result:
        if not pools:
            pools.append(get_context('spawn').Pool(1))
        try:
            return pools[0].apply_async(function, args).get(LIMIT)
        except Exception as error:
            pools.pop().terminate()
            return {'failed': describe_error(error)}

    yield call
    for pool in pools:
        pool.terminate()


def time_and_memory(job: Job) -> Result:
    """Milliseconds of a step, and MiB beyond weights and input."""
    run = prepared(job)
    memory = peak_memory(Task(job).capture if job.mode == 'graph' else run, job.device)
    seconds = measure_seconds(run, job.threads, 1.0 if job.device == 'cuda' else 0.0)
    return {'ms': 1e3 * seconds, 'MiB': memory / 2**20}


def worst_operators(job: Job) -> Result:
    """Milliseconds of the five operators that take longest, without those that they call."""
    run = prepared(job)
    with profile() as profiler:
        run()
    key = attrgetter('self_cpu_time_total' if job.device == 'cpu' else 'self_device_time_total')
    operators = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]  # no kernels
    worst = sorted(operators, key=key, reverse=True)[:5]
    return {'operators': {event.key: key(event) / 1e3 for event in worst}}


def prepared(job: Job) -> Callable[[], None]:
    """A step that was made before; products in float32 are TF32."""
    torch.set_float32_matmul_precision('high')
    torch.compiler.reset()
    gc.collect()
    if job.device == 'cuda':
        torch.cuda.empty_cache()
    return Task(job).warm_up(2)


def tables(environment: str, results: dict[str, Result]) -> str:
    """The report in Markdown."""
    text = f'```text\n{environment}\n```\n'
    for kind, header, fill in (
        ('test: ', ['tests', 'result'], test_row),
        ('operators: ', ['network', 'operators that take longest, ms'], operators_row),
        ('time: ', HEADER, time_row),
    ):
        found = {key.removeprefix(kind): results[key] for key in results if key.startswith(kind)}
        if found:
            text += f'\n{markdown([header, *(fill(key, found) for key in found)])}\n'
    return text


def test_row(key: str, results: dict[str, Result]) -> list[str]:
    return [key, ' '.join(results[key].get(name, '') for name in ('tests', 'failed')).strip()]


def operators_row(key: str, results: dict[str, Result]) -> list[str]:
    times = results[key].get('operators', {})
    return [key, ', '.join(f'{name} {ms:.2f}' for name, ms in times.items()) or results[key]['failed']]


def time_row(key: str, results: dict[str, Result]) -> list[str]:
    """With the ratios to the straightforward program, eager in TF32, and to Swin-T under the same conditions."""
    name, step, batch, dtype, mode, *with_cp = key.split(', ')
    own = results[key]
    plain = results.get(f'straightforward {name}, {step}, {batch}, fp32, eager', {})
    swin = results.get(', '.join(['Swin-T', step, batch, dtype, mode]), {})
    ratios = [ratio(plain, own, 'ms'), ratio(own, plain, 'MiB'), ratio(own, swin, 'ms')]
    numbers = [f'{number:.2f}' if number else '' for number in (own.get('ms'), own.get('MiB'), *ratios)]
    return [name, step, batch, dtype, ' '.join([mode, *with_cp]), *numbers, own.get('failed', '')]


def ratio(a: Result, b: Result, unit: str) -> float | None:
    return a[unit] / b[unit] if a.get(unit) and b.get(unit) else None


if __name__ == '__main__':
    main()
