"""Fits PyTorch's threads to the CPUs that other processes leave.

The threads of an operator wait for one another. Where another process takes a CPU from one of them, all are slow, and
one thread fewer is faster.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvit.registry import HOOKS, register

STAT = Path('/proc/stat')
SHORTEST = 0.2  # seconds between two looks: Linux counts CPU time in hundredths of a second
TAKEN = 0.25  # part of a CPU: where others use more of it, it is theirs. One that wants it all may get half beside us.


@register(HOOKS)
class FitThreadsHook(Hook):
    """Before each iteration on a CPU, take as many threads as there are CPUs that other processes leave.

    Never more than at the start. The number of threads changes the last bits of a result: with
    ``randomness=dict(deterministic=True)``, on a GPU, and where there is no ``/proc/stat``, nothing is done.
    """

    def before_run(self, runner: Runner) -> None:
        self.threads: FittingThreads | None = None
        if STAT.exists() and not getattr(runner, 'deterministic', False):
            self.threads = FittingThreads()

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.threads is not None and next(runner.model.parameters()).device.type == 'cpu':
            self.threads.fit()

    before_val_iter = before_test_iter = before_train_iter

    def after_run(self, runner: Runner) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads.most)


class FittingThreads:
    """PyTorch's threads in this process, at most as many as when this was made.

    Other processes, be they workers of this one, are seen by the CPU time that they used since the last look.
    """

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        self.seen = cpu_times()

    def fit(self) -> int:
        """Set the number of threads, and return it."""
        seen = cpu_times()
        elapsed, others = (now - then for now, then in zip(seen, self.seen, strict=True))
        if elapsed >= SHORTEST:
            free = len(os.sched_getaffinity(0)) - others / elapsed
            torch.set_num_threads(max(1, min(self.most, math.floor(free + TAKEN))))
            self.seen = seen
        return torch.get_num_threads()


def cpu_times() -> tuple[float, float]:
    """The time, and the CPU time that others had of this process's CPUs since the machine started, in seconds."""
    cpus = {f'cpu{number}' for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in STAT.read_text().splitlines():
        name, *columns = line.split()
        if name in cpus:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, columns[:8])
            ticks += user + nice + system + irq + softirq + steal
    return time.monotonic(), ticks / os.sysconf('SC_CLK_TCK') - time.process_time()
