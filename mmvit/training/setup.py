"""Ends a run whose files or settings cannot be right before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmvit.checkpoints.files import other_format
from mmvit.models.base import Backbone
from mmvit.registry import HOOKS, register
from mmvit.training.files import is_whole
from mmvit.training.stopping import stop

NEEDED_TO_RESUME = ('meta', 'message_hub', 'optimizer')


@register(HOOKS)
class CheckSetupHook(Hook):
    """End a training or test with one sentence where it cannot go right.

    - The file of ``load_from``, ``--resume`` or ``mim test`` is no whole checkpoint.
    - The file of ``--resume`` holds weights alone.
    - The maps of mmvit's backbone are not those that the neck or a head was built for.
    - A module that the data or the metric need is missing. The runner makes its hooks before its data.

    Args:
        partial_weights: Let the backbone take weights that are not complete, or of another shape in part. It refuses
            them otherwise.
        needs: {module that must be there: what to give to ``pip install``}.
    """

    priority = 'HIGHEST'  # before hooks that copy the model

    def __init__(self, partial_weights: bool = False, needs: Mapping[str, str] | None = None) -> None:
        self.partial_weights = partial_weights
        for module, package in (needs or {}).items():
            if find_spec(module) is None:
                stop(f'{module} is missing: run `pip install {package}`.')

    def before_run(self, runner: Runner) -> None:
        if not runner._has_loaded:
            check_file(runner)
        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        backbone = getattr(model, 'backbone', None)
        if isinstance(backbone, Backbone):
            backbone.partial_weights = self.partial_weights
            if faults := list(find_faults(runner.cfg.get('model') or {}, backbone.out_channels)):
                stop('\n'.join(faults))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume and (missing := [key for key in NEEDED_TO_RESUME if key not in checkpoint]):
            stop(
                f'Cannot resume from {runner._load_from}: it has no {" and no ".join(missing)}. '
                'To begin a training with these weights, leave out --resume and add --cfg-options load_from=FILE'
            )


def check_file(runner: Any) -> None:
    """Stop if the runner is to load a local file that is no whole checkpoint."""
    path = str(runner._load_from or '')
    if not path or '://' in path:
        return
    if fault := find_fault(Path(path).expanduser()):
        newest = f' --resume alone takes the newest whole checkpoint in {runner.work_dir}.' if runner._resume else ''
        stop(f'Cannot load {path}: it {fault}{newest}')


def find_fault(path: Path) -> str:
    """Why no checkpoint can be loaded from a path, and what to do; empty if nothing was found."""
    if not path.is_file():
        found = 'is a folder' if path.is_dir() else 'is not there'
        return f'{found}: give the path of a checkpoint.'
    if what := other_format(path):
        return what
    with path.open('rb') as file:
        is_archive = file.read(2) == b'PK'
    if is_archive and not is_whole(path):
        return 'is not whole: its end is missing, or a part is damaged. Copy or download it again.'
    return ''


def find_faults(model: Mapping[str, Any], channels: tuple[int, ...]) -> Iterator[str]:
    """What in the neck or, where there is none, in the heads does not fit the backbone's maps, a sentence each.

    Args:
        model: The model's config.
        channels: Of each map.
    """
    has = f'model.backbone.out_indices gives {len(channels)} maps, of {list(channels)} channels'
    if necks := as_list(model.get('neck')):
        taken = necks[0].get('in_channels')
        if isinstance(taken, Sequence) and tuple(taken) != channels:
            yield f'{has}, but model.neck.in_channels is {list(taken)}. The two must be equal.'
        return
    if (head := model.get('panoptic_head')) and tuple(head['in_channels']) != channels:
        yield f'{has}, but model.panoptic_head.in_channels is {list(head["in_channels"])}. The two must be equal.'
    for name in ('decode_head', 'auxiliary_head'):
        for head in as_list(model.get(name)):
            indices, taken = as_list(head.get('in_index', -1)), as_list(head.get('in_channels'))
            there = [channels[i] if -len(channels) <= i < len(channels) else None for i in indices]
            if len(indices) == len(taken) and taken != there:
                yield (
                    f'{has}, but model.{name}.in_index {indices} takes maps of model.{name}.in_channels {taken}: '
                    f'there, the backbone has {there}.'
                )


def as_list(value: Any) -> list[Any]:
    """The entries of a list or tuple; one of anything else, none of None."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
