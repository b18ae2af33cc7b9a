"""Kills a training, resumes it, and again: ``python tests/kill_training.py --kills 100``.

A toy that saves every four iterations, in one process and in two by turns, with checkpoints large enough to be hit. A
kill is ``kill -9`` of all its processes: every other one while checkpoints are being written, the rest at any time.
After each comes ``--resume``. ``--stock`` takes mmengine's own hook.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from toy_training import finish, start

STOCK = dict(checkpoint=dict(type='CheckpointHook'))
BETWEEN_SAVES = 4  # iterations
FOR_EVER = 10_000  # epochs
PATIENCE = 120  # seconds


@dataclass
class Result:
    """What was found."""

    kills: int = 0
    in_two: int = 0
    aimed: int = 0
    hit: int = 0
    failed: list[str] = field(default_factory=list)
    lost: Counter[int] = field(default_factory=Counter)

    def count(self, processes: int, is_aimed: bool) -> None:
        """One more kill."""
        self.kills += 1
        self.in_two += processes == 2
        self.aimed += is_aimed

    def report(self) -> str:
        """All figures in words."""
        figures = (
            f'{self.kills} kills, {self.in_two} of them of two processes, {self.aimed} of them aimed at a save; '
            f'{self.hit} left a partial file. {sum(self.lost.values())} resumes went on. '
            f'Iterations lost, and how often: {dict(sorted(self.lost.items()))}'
        )
        return '\n'.join([figures, *self.failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--ballast', type=int, default=8, help='MiB of weights; a checkpoint holds them twice')
    parser.add_argument('--stock', action='store_true')
    options = parser.parse_args()
    hooks = dict(hooks=STOCK) if options.stock else {}
    result = kill_and_resume(options.kills, options.seed, ballast=options.ballast, **hooks)
    print(result.report())
    raise SystemExit(bool(result.failed))


def kill_and_resume(kills: int, seed: int = 0, **options) -> Result:
    """Start, kill, resume, kill, and so on; what cannot be resumed begins anew in another folder."""
    draw, result = random.Random(seed), Result()
    root = Path(tempfile.mkdtemp(prefix='kill_training_'))
    folder, before = root / 'start', []
    for number in range(kills + 1):
        processes = 1 + number // 2 % 2
        trained = start(folder, processes, epochs=FOR_EVER, pause=0.02, resume=True, **options)
        problem = wait(lambda: len(lines(folder)) > len(before), folder, trained)  # noqa: B023  (called at once)
        lost = 0 if problem or not before else lost_iterations(before, lines(folder))
        if lost > BETWEEN_SAVES:
            problem = f'{lost} iterations lost'
        if problem:
            result.failed.append(f'resume {number}: {problem}')
            kill(trained)
            folder, before = root / f'after_{number}', []
            continue
        if before:
            result.lost[lost] += 1
        if number < kills:
            wait((folder / 'last_checkpoint').exists, folder, trained)
            wait_for_the_moment(folder, draw, is_aimed=number % 2 == 0)
            result.count(processes, is_aimed=number % 2 == 0)
        kill(trained)
        result.hit += any(folder.glob('*.partial'))
        before = lines(folder)
    shutil.rmtree(root)
    return result


def wait(condition: Callable[[], bool], folder: Path, trained: Sequence[BaseProcess]) -> str:
    """Wait until a condition holds; empty, or why it never will."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline or not all(process.is_alive() for process in trained):
            return (folder / 'output.txt').read_text().strip().rpartition('\n')[2] or 'nothing happened'
        time.sleep(0.005)
    return ''


def wait_for_the_moment(folder: Path, draw: random.Random, is_aimed: bool) -> None:
    """Some moment or, aimed, one after the files that are there have begun to change."""
    if not is_aimed:
        time.sleep(draw.uniform(0, 0.6))
        return
    deadline = time.monotonic() + PATIENCE
    there = names(folder)
    while names(folder) == there and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.03))


def names(folder: Path) -> set[Path]:
    return set(folder.glob('*.pth*'))


def kill(trained: Sequence[BaseProcess]) -> None:
    for process in trained:
        process.kill()
    finish(trained)


def lines(folder: Path) -> list[dict]:
    """What was trained, in order."""
    file = folder / 'losses_0.jsonl'
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def lost_iterations(before: list[dict], after: list[dict]) -> int:
    """How many iterations of those before a kill a resumed training trains again."""
    return before[-1]['iter'] + 1 - after[len(before)]['iter']


if __name__ == '__main__':
    main()
