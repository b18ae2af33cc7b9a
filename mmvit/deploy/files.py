"""The files of an exported model: one in ONNX, or two in OpenVINO's format, NAME.xml and the weights in NAME.bin."""

from __future__ import annotations

from pathlib import Path

from mmvit.commands import check_folder


def parts(path: Path) -> list[Path]:
    """All files of a model. The last one is what an engine opens."""
    return [path.with_suffix('.bin'), path] if path.suffix == '.xml' else [path]


def size_of(path: Path) -> int:
    """Bytes of all files of a model."""
    return sum(part.stat().st_size for part in parts(path))


def check_place(path: Path) -> None:
    """Raises ValueError if a model cannot be written there, or would overwrite other data."""
    check_folder(path.parent)
    for part in parts(path):
        if part.is_dir():
            raise ValueError(f'{part} is a folder: give another name')
    weights = parts(path)[0]
    if weights.exists() and not path.exists():
        raise ValueError(f'{weights} is there without {path.name} and would be overwritten: give another name')


def move(model: Path, path: Path) -> None:
    """Give a model its place. Only a crash between its two renames leaves one new and one old file."""
    for made, target in zip(parts(model), parts(path), strict=True):
        made.replace(target)
