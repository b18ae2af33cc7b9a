"""Threads leave the CPUs that other processes want."""

import os
from itertools import count

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from toy_training import HOOKS, settings

from mmvit.training import threads


@pytest.fixture(autouse=True)
def threads_are_put_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def four_cpus(monkeypatch, tmp_path):
    """Lets this process have CPUs 0 to 3 of five and two seconds pass at each look; others are given in ticks a CPU."""
    file = tmp_path / 'stat'
    clock = count(0, 2)
    monkeypatch.setattr(threads, 'STAT', file)
    monkeypatch.setattr(threads.time, 'monotonic', lambda: next(clock))
    monkeypatch.setattr(threads.time, 'process_time', lambda: 0.0)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1, 2, 3})

    def busy(*ticks):
        lines = [f'cpu{i} {user} 0 0 900 90 0 0 0 0 0' for i, user in enumerate([*ticks, 10**6])]
        file.write_text('\n'.join(['cpu 5 5 5 5 5 5 5 5 5 5', *lines, 'intr 1']))

    return busy


@pytest.mark.parametrize(
    ('seconds', 'expected'),
    [
        ((0, 0, 0, 0), 3),
        ((0.2, 0.2, 0, 0), 3),
        ((2, 0.2, 0.2, 0), 3),
        ((2, 1.4, 0, 0), 2),
        ((2, 1, 0, 0), 2),  # beside our threads, a process that wants a whole CPU may get half
        ((2, 2, 2, 0), 1),
        ((2, 2, 2, 2), 1),
    ],
)
def test_threads_are_the_cpus_that_others_leave(seconds, expected, four_cpus):
    """Three threads at most; the fifth CPU, which is not this process's, does not count."""
    torch.set_num_threads(3)
    four_cpus(0, 0, 0, 0)
    fitting = threads.FittingThreads()
    four_cpus(*(int(busy * os.sysconf('SC_CLK_TCK')) for busy in seconds))
    assert fitting.fit() == torch.get_num_threads() == expected
    for _ in range(3):  # the others have ended
        most = fitting.fit()
    assert most == 3


def test_a_look_too_soon_changes_nothing(four_cpus, monkeypatch):
    torch.set_num_threads(3)
    four_cpus(0, 0, 0, 0)
    fitting = threads.FittingThreads()
    monkeypatch.setattr(threads, 'SHORTEST', 5)
    four_cpus(900, 900, 900, 900)
    assert fitting.fit() == 3


def test_own_work_does_not_count():
    """On this machine, as it is."""
    fitting = threads.FittingThreads()
    x = torch.ones(500, 500)
    then, own = threads.time.monotonic(), threads.time.process_time()
    _, others = threads.cpu_times()
    while threads.time.monotonic() < then + 0.5:
        x @ x
    own = threads.time.process_time() - own
    grown = threads.cpu_times()[1] - others
    assert own > 0.1
    assert grown < 0.5 * len(os.sched_getaffinity(0)) - own + 0.1
    assert 1 <= fitting.fit() <= fitting.most


class Threads(Hook):
    """Notes the number of threads of each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def before_train_iter(self, *_, **__):
        self.seen.append(torch.get_num_threads())

    before_val_iter = before_train_iter


@pytest.mark.parametrize(('deterministic', 'expected'), [(False, 1), (True, 2)])
def test_a_training_beside_processes_that_take_all(deterministic, expected, tmp_path, monkeypatch):
    torch.set_num_threads(2)
    looks = count(0, 100)
    monkeypatch.setattr(threads, 'cpu_times', lambda: (now := next(looks), now * len(os.sched_getaffinity(0))))
    hooks = dict(HOOKS, threads=dict(type='mmvit.FitThreadsHook'))
    config = settings(tmp_path, epochs=1, hooks=hooks, randomness=dict(seed=0, deterministic=deterministic))
    runner = Runner.from_cfg(Config(config))
    noted = Threads()
    runner.register_hook(noted)
    runner.train()
    assert noted.seen == [expected] * 8  # four of training, four of validation
    assert torch.get_num_threads() == 2
