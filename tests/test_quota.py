"""The thread count follows a container's quota of CPUs. The cgroups are made-up files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvit import environment, quota
from mmvit.quota import limited_cpus

ENTRY_POINT = Path(__file__).parents[1] / 'docker/entrypoint.sh'


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch):
    monkeypatch.setattr(quota, 'visible_cpus', lambda: 8)


def machine(root: Path, groups: str, **files: str) -> Path:
    """A machine whose process is in these cgroups, with these files below ``sys/fs/cgroup``."""
    for name, text in {'proc/self/cgroup': groups, **{f'sys/fs/cgroup/{k}': v for k, v in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINES = {
    'version 2, in a container': (2, '0::/\n', {'cpu.max': '200000 100000\n'}),
    'version 2, no limit': (None, '0::/\n', {'cpu.max': 'max 100000\n'}),
    'version 2, a part of a CPU': (3, '0::/\n', {'cpu.max': '250000 100000\n'}),
    'version 2, less than a CPU': (1, '0::/\n', {'cpu.max': '10000 100000\n'}),
    'version 2, more than there are': (None, '0::/\n', {'cpu.max': '1600000 100000\n'}),
    'version 2, in a job': (3, '0::/slurm/job\n', {'slurm/job/cpu.max': '300000 100000\n', 'slurm/cpu.max': 'max 1\n'}),
    'version 2, the outer is less': (2, '0::/a/b\n', {'a/b/cpu.max': '4000 1000\n', 'a/cpu.max': '2000 1000\n'}),
    'version 2, root of the host': (None, '0::/\n', {}),
    'version 1, in a container': (
        2,
        '3:memory:/docker/12\n2:cpu,cpuacct:/docker/12\n0::/\n',  # which is seen as the top
        {'cpu/cpu.cfs_quota_us': '150000\n', 'cpu/cpu.cfs_period_us': '100000\n'},
    ),
    'version 1, in a job': (
        4,
        '1:cpu:/job\n',
        {
            'cpu/job/cpu.cfs_quota_us': '400000\n',
            'cpu/job/cpu.cfs_period_us': '100000\n',
            'cpu/cpu.cfs_quota_us': '-1\n',
            'cpu/cpu.cfs_period_us': '100000\n',
        },
    ),
    'version 1, no limit': (None, '1:cpu:/\n', {'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}),
    'version 1, of others': (None, '1:memory:/\n', {'cpu/cpu.cfs_quota_us': '1\n', 'cpu/cpu.cfs_period_us': '1\n'}),
    'a damaged file': (None, '0::/\n', {'cpu.max': '\n'}),
}


@pytest.mark.parametrize(('expected', 'groups', 'files'), MACHINES.values(), ids=MACHINES)
def test_quota(expected, groups, files, tmp_path):
    assert limited_cpus(machine(tmp_path, groups, **files)) == expected


def test_no_cgroups(tmp_path):
    assert limited_cpus(tmp_path) is None


def test_more_threads_than_the_quota_are_a_fault(monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 8)
    monkeypatch.setattr(environment, 'limited_cpus', lambda: 2)
    with pytest.warns(UserWarning, match='uses 8 threads.*CPU quota of this container is 2.*set OMP_NUM_THREADS=2'):
        environment.check_environment()
    assert 'CPU (8 threads of ' in environment.report()
    assert ', quota 2)' in environment.report()


@pytest.mark.parametrize(('threads', 'cpus'), [(2, 2), (1, 2), (64, None)])
def test_no_more_threads_than_the_quota_are_none(threads, cpus, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    monkeypatch.setattr(environment, 'limited_cpus', lambda: cpus)
    assert 'CPU quota' not in environment.report()


def entered(root: Path, **variables: str) -> list[str]:
    """The thread count that a command of the image gets on a machine that has its files in ``root``."""
    python = root / 'bin/python'
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" {root}\n')
    python.chmod(0o755)
    env = {'PATH': f'{python.parent}:{os.environ["PATH"]}', **variables}
    command = ['sh', str(ENTRY_POINT), 'sh', '-c', 'echo "${OMP_NUM_THREADS-unset}" "$@"', 'sh', 'two words']
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd='/').stdout.split()


@pytest.mark.skipif(os.cpu_count() == 1, reason='a quota limits nothing on one CPU')
def test_entry_point_sets_the_quota(tmp_path):
    assert entered(machine(tmp_path, '0::/\n', **{'cpu.max': '50000 100000\n'})) == ['1', 'two', 'words']


def test_entry_point_without_a_quota(tmp_path):
    assert entered(machine(tmp_path, '0::/\n', **{'cpu.max': 'max 100000\n'})) == ['unset', 'two', 'words']


def test_entry_point_leaves_what_is_set(tmp_path):
    limited = machine(tmp_path, '0::/\n', **{'cpu.max': '50000 100000\n'})
    assert entered(limited, OMP_NUM_THREADS='5') == ['5', 'two', 'words']
