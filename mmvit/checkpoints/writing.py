"""Writing checkpoints as ``.pth`` or ``.safetensors``; mmengine can load either."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from mmengine.runner import CheckpointLoader


def write_checkpoint(checkpoint: dict[str, Any], out: Path) -> Path:
    """Write a file completely or not at all, and return its path.

    Args:
        checkpoint: ``{'meta': ..., 'state_dict': ...}``.
        out: Path that ends in one of ``WRITERS``. ``-`` and the first 8 digits of the file's sha256 are added to the
            stem.
    """
    data = WRITERS[out.suffix](checkpoint)
    path = out.with_stem(f'{out.stem}-{hashlib.sha256(data).hexdigest()[:8]}')
    part = path.with_suffix(f'.{os.getpid()}.part')  # in the same folder, so that replacing is atomic
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def to_pickle(checkpoint: dict[str, Any]) -> bytes:
    """The bytes of a file for ``torch.load(..., weights_only=True)``."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def to_safetensors(checkpoint: dict[str, Any]) -> bytes:
    """The bytes of a file for :func:`load_from_safetensors`."""
    return safetensors.torch.save(checkpoint['state_dict'], metadata={'meta': json.dumps(checkpoint['meta'])})


WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {'.pth': to_pickle, '.safetensors': to_safetensors}


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', force=True)
def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local file for mmengine (``--checkpoint``, ``load_from``, ``Pretrained``)."""
    device = str(map_location or 'cpu')
    with safetensors.safe_open(Path(filename).expanduser(), framework='pt', device=device) as file:
        meta = json.loads((file.metadata() or {}).get('meta', '{}'))
        return {'meta': meta, 'state_dict': {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
