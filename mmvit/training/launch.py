"""The command that started this process, as the user typed it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

LAUNCHERS = ('mim', 'torchrun', 'torch.distributed.run', 'torch.distributed.launch')


def resuming_command() -> str:
    """The command that goes on with this training."""
    words = list(sys.orig_argv)
    for _, parent in parents():
        if is_launcher(parent):
            words = parent
    return shlex.join([*without_resume(words), '--resume'])


def without_resume(words: list[str]) -> list[str]:
    """A command without ``--resume`` and the file that may follow it."""
    kept = []
    for before, word in zip(['', *words], words, strict=False):
        is_file = before == '--resume' and not word.startswith('-')
        if word != '--resume' and not word.startswith('--resume=') and not is_file:
            kept.append(word)
    return kept


def mim_process() -> int | None:
    """The id of the mim that waits for this training, if one does."""
    return next((pid for pid, words in parents() if is_launcher(words, ('mim',))), None)


def is_launcher(words: list[str], names: tuple[str, ...] = LAUNCHERS) -> bool:
    """Whether a command runs one of these programs, or has Python run it."""
    return any(Path(word).name in names for word in words[:4])


def parents() -> Iterator[tuple[int, list[str]]]:
    """Id and command of this process's parent, of its parent, and so on; of none where there is no ``/proc``."""
    pid = os.getppid()
    while pid > 1 and (fields := stat_fields(pid)):
        try:
            command = Path(f'/proc/{pid}/cmdline').read_bytes()
        except OSError:
            return
        yield pid, [word.decode(errors='replace') for word in command.split(b'\0')[:-1]]
        pid = int(fields[1])


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    return stat_fields(pid)[:1] not in ([], ['Z'], ['X'])


def stat_fields(pid: int) -> list[str]:
    """What ``/proc`` says of a process, from its state and its parent on; empty if there is none."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return []
