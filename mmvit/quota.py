"""How many CPUs the container of this process may use.

``docker run --cpus=2`` does not hide CPUs. It limits the time that all threads run, by a quota of their cgroup. PyTorch
(2.13) starts a thread for each CPU that it sees, and those above the quota make the others wait.

Run as a program, for the image's entry point, this module prints the number of CPUs if a quota limits them. It needs
nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path


def limited_cpus(root: Path = Path('/')) -> int | None:
    """CPUs that the cgroup's quota leaves, a part of one counted as one; None if it leaves all.

    Args:
        root: Folder of ``proc`` and ``sys``.
    """
    cpus = ceil(min(quotas(root), default=float(visible_cpus())))
    return cpus if cpus < visible_cpus() else None


def visible_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def quotas(root: Path) -> Iterator[float]:
    """The quotas, in CPUs, of this process's cgroups (versions 1 and 2) and of those that they are in."""
    try:
        groups = (root / 'proc/self/cgroup').read_text().splitlines()
    except OSError:
        return  # not Linux
    for group in groups:
        _, controllers, path = group.split(':', 2)
        if controllers and 'cpu' not in controllers.split(','):
            continue
        top = root / 'sys/fs/cgroup' / ('cpu' if controllers else '')
        folder = top / path.lstrip('/')
        for place in (folder, *folder.parents):
            if place.is_relative_to(top):  # a container may see its own group as the top
                yield from quota(place)


def quota(folder: Path) -> Iterator[float]:
    """The quota of a cgroup, in CPUs, if it has one."""
    for names in (('cpu.max',), ('cpu.cfs_quota_us', 'cpu.cfs_period_us')):
        try:
            time, period = ' '.join((folder / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if time not in ('max', '-1'):
            yield int(time) / int(period)


if __name__ == '__main__':
    if cpus := limited_cpus(*map(Path, sys.argv[1:])):
        print(cpus)
