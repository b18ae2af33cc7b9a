"""A config for others: without what belongs to one training or to one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config


def for_others(config: Config) -> Config:
    """A copy without the training's folder, the weights that it began with, and the folders of absolute paths."""
    loadable = {**config.to_dict(), 'load_from': None, 'resume': False}
    loadable.pop('work_dir', None)
    for settings, key, _ in list(initial_weights(loadable['model'])):
        settings[key] = None
    return Config(without_folders(loadable))


def initial_weights(settings: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(settings, key, file) of each part of a model that begins with a file's weights."""
    if isinstance(settings, (list, tuple)):
        for part in settings:
            yield from initial_weights(part)
    elif isinstance(settings, dict):
        for key, value in settings.items():
            if key == 'pretrained' and isinstance(value, str):
                yield settings, key, value
            elif key == 'init_cfg':
                inits = value if isinstance(value, (list, tuple)) else [value or {}]
                yield from ((settings, key, init['checkpoint']) for init in inits if 'checkpoint' in init)
            else:
                yield from initial_weights(value)


def without_folders(value: Any) -> Any:
    """Settings in which each absolute path is cut to its last part."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_folders, value))
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
