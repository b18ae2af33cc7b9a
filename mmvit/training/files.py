"""Checkpoint files that are whole or absent, and the newest of them."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

PARTIAL = '.partial'  # ends the name of what is being written


def put_in_place(partial: Path, path: Path) -> None:
    """Give a file, or a folder of files, its real name once the disk has it."""
    for file in sorted(partial.iterdir()) if partial.is_dir() else [partial]:
        flush(file)
    if partial.is_dir():
        flush(partial)
        remove(path)  # a folder cannot be replaced
    os.replace(partial, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    if path.is_dir() and os.name == 'nt':
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that readers find the old text or the new."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text)
    put_in_place(partial, path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether all of a checkpoint is there, by the checksums in it. A folder has one file for each process."""
    if path.is_dir():
        files = list(path.iterdir())
        return bool(files) and all(map(is_whole, files))
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False  # zipfile has an error for each part that can be damaged


def newest_whole(folder: Path, patterns: Sequence[str]) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint in a folder, and the broken ones that are newer."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    broken: list[Path] = []
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if is_whole(path):
            return path, broken
        broken.append(path)
    return None, broken
