"""Released checkpoints: loading them from a config, and how they name a backbone's weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from torch import Tensor

from mmvit.files import read_checkpoint  # noqa: F401  (is looked for here too)
from mmvit.registry import WEIGHT_INITIALIZERS, register

if TYPE_CHECKING:
    from mmvit.models.base import Backbone


@register(WEIGHT_INITIALIZERS)
class OfficialWeights:
    """Initialiser for a backbone's ``init_cfg``: the authors' released file, converted and loaded completely.

    ``init_cfg=dict(type='mmvit.OfficialWeights', checkpoint='mpvit_small.pth')``. Unlike mmengine's ``Pretrained``,
    weights that are missing or do not fit are an error.

    Args:
        checkpoint: Path or http(s) address of a released file.
        sha256: What the file's must be, if you know it.
    """

    def __init__(self, checkpoint: str, sha256: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.sha256 = sha256

    def __call__(self, module: Backbone) -> None:
        if not hasattr(module, 'load_official'):
            raise TypeError(
                f"OfficialWeights belongs in the init_cfg of one of mmvit's backbones, not of {type(module).__name__}"
            )
        module.load_official(self.checkpoint, self.sha256)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'{type(self).__name__}: load from {self.checkpoint}')


class OfficialLayout:
    """How one family's released checkpoints name the weights of its backbone.

    Args:
        renames: Pairs of key beginnings (theirs, ours), the first that fits counts. ``#`` stands for a number; the
            numbers of theirs fill ours in order (``#+1``: plus one), and surplus ones are dropped. Several of theirs
            may lead to one of ours: the released files then hold one tensor under many names.
        prefixes: What stands before the keys in files of detectors and segmenters.
        landmark: The key that tells the backbone's place in a file.
        classifier: Beginnings of the keys that a backbone has no use for.
        optional: Part of our names of weights that only some of the family's files have.
        map_norms: Parts of our names of norms that the files store as (1, C, 1, 1).
    """

    def __init__(
        self,
        renames: Sequence[tuple[str, str]],
        prefixes: Sequence[str],
        landmark: str,
        classifier: tuple[str, ...],
        optional: str | None = None,
        map_norms: tuple[str, ...] = (),
    ) -> None:
        self.renames = renames
        self.prefixes = [outer + inner for outer in ('', 'module.') for inner in ('', *prefixes)]
        self.landmark = landmark
        self.classifier = classifier
        self.optional = optional
        self.map_norms = map_norms

    def backbone_weights(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The backbone's entries of a loaded file, with their official names, the classifier left out.

        Raises:
            ValueError: The file has no such backbone, or some of its entries are no tensors.
        """
        weights: Mapping[str, Any] = checkpoint
        for key in ('model', 'state_dict'):
            if isinstance(checkpoint.get(key), Mapping):
                weights = checkpoint[key]
                break
        prefix = next((p for p in self.prefixes if p + self.landmark in weights), None)
        if prefix is None:
            raise ValueError(f'found no {self.landmark!r} in it, under any known prefix; {_keys(weights)}')
        mine = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        mine = {k: v for k, v in mine.items() if not k.startswith(self.classifier)}
        no_tensors = [k for k, v in mine.items() if not isinstance(v, Tensor | np.ndarray)]
        if no_tensors:
            raise ValueError(f'these entries are no tensors; {_keys(no_tensors)}')
        return {k: torch.as_tensor(v) for k, v in mine.items()}

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official names to ours, each tensor once.

        Raises:
            ValueError: A key is none of the family's, or two names of one tensor hold different values.
        """
        renamed: dict[str, Tensor] = {}
        origin: dict[str, str] = {}
        unknown = []
        disagreeing = []
        for key, value in weights.items():
            name = self._our_name(key)
            if name is None:
                unknown.append(key)
                continue
            if any(part in name for part in self.map_norms):
                value = value.flatten()
            if name not in renamed:
                renamed[name], origin[name] = value, key
            elif not torch.equal(renamed[name], value):
                disagreeing += [origin[name], key]
        if unknown:
            raise ValueError(f'it has unexpected entries; {_keys(unknown)}')
        if disagreeing:
            raise ValueError(f'these entries are copies of one tensor and disagree; {_keys(disagreeing)}')
        return renamed

    def restore(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names to the official ones, with every copy that the released files hold.

        Raises:
            ValueError: A key is none of the family's.
        """
        restored: dict[str, Tensor] = {}
        copies: list[tuple[str, Tensor]] = []
        unknown = []
        for name, value in weights.items():
            if any(part in name for part in self.map_norms):
                value = value[None, :, None, None]
            keys = self._official_names(name)
            if not keys:
                unknown.append(name)
            restored |= {key: value for key in keys if '#' not in key}
            copies += [(key, value) for key in keys if '#' in key]
        if unknown:
            raise ValueError(f'it has unexpected entries; {_keys(unknown)}')
        for template, value in copies:  # one in each block that there is
            start, end = template.split('#')
            blocks = {match[1] for key in restored if (match := re.match(re.escape(start) + r'(\d+)\.', key))}
            restored |= {start + block + end: value for block in blocks}
        return restored

    def expected(self, own: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> Mapping[str, torch.Size]:
        """What of a model's own layout a file must have: all of it, but optional weights only if it has some."""
        if self.optional is None or any(self.optional in name for name in found):
            return own
        return {name: shape for name, shape in own.items() if self.optional not in name}

    def _our_name(self, key: str) -> str | None:
        for theirs, ours in self.renames:
            if match := _pattern(theirs).match(key):
                return _filled(ours, theirs, match) + key[match.end() :]
        return None

    def _official_names(self, name: str) -> list[str]:
        """All of them; the number of a block that ours does not name stays ``#``."""
        found = [(theirs, ours, match) for theirs, ours in self.renames if (match := _pattern(ours).match(name))]
        longest = max((match.end() for *_, match in found), default=0)
        return [_filled(*rename) + name[longest:] for rename in found if rename[2].end() == longest]


def describe_mismatch(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> str:
    """The keys in which two layouts differ, in words; empty if they are equal."""

    def lines() -> Iterator[str]:
        if missing := sorted(expected.keys() - found.keys()):
            yield f'missing: {_keys(missing)}'
        if unexpected := sorted(found.keys() - expected.keys()):
            yield f'unexpected: {_keys(unexpected)}'
        if misshapen := [
            f'{key} {tuple(found[key])} instead of {tuple(shape)}'
            for key, shape in expected.items()
            if key in found and found[key] != shape
        ]:
            yield f'of another shape: {_keys(misshapen)}'

    return '; '.join(lines())


def log_line(message: str) -> None:
    """One line to mmengine's current logger."""
    print_log(message, logger='current')


NUMBER = re.compile(r'#([+-]1)?')  # in a template


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(r'(\d+)'.join(re.escape(text) for text in NUMBER.sub('#', template).split('#')))


def _filled(template: str, other: str, match: re.Match[str]) -> str:
    """The template with the numbers that the other one matched; what either has too many of is left."""
    for number, shift in zip(match.groups(), NUMBER.findall(other), strict=True):
        if place := NUMBER.search(template):
            index = int(number) - int(shift or 0) + int(place[1] or 0)
            template = f'{template[: place.start()]}{index}{template[place.end() :]}'
    return template


def _keys(names, shown: int = 20) -> str:
    names = list(names)
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return f'{len(names)} keys: {", ".join(map(str, names[:shown]))}{more}'
