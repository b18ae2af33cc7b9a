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

from mmvit.registry import WEIGHT_INITIALIZERS, register

if TYPE_CHECKING:
    from mmvit.models.base import Backbone


@register(WEIGHT_INITIALIZERS)
class OfficialWeights:
    """Initialiser for a backbone's ``init_cfg``: the authors' released file, converted and loaded completely.

    A file of one's own that holds the backbone (alone, in a classifier or in a detector of mmvit) is taken as well.
    ``init_cfg=dict(type='mmvit.OfficialWeights', checkpoint='mpvit_small.pth')``. Unlike mmengine's ``Pretrained``,
    weights that are missing or do not fit are an error.

    Args:
        checkpoint: Path or http(s) address of the file.
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
        renames: Pairs of key beginnings (theirs, ours), the first that fits counts; ``new_names`` says what they may
            hold. Several of theirs may lead to one of ours: the released files then hold one tensor under many names.
        prefixes: What stands before the keys in files of detectors and segmenters.
        landmark: The key that tells the backbone's place in a file; not one of ours.
        classifier: Pairs of beginnings of the classifier's keys (theirs, those of ``mmvit.classifiers``).
        optional: Part of our names of weights that only some of the family's files have.
        map_norms: Parts of our names of norms that the files store as (1, C, 1, 1).
    """

    def __init__(
        self,
        renames: Sequence[tuple[str, str]],
        prefixes: Sequence[str],
        landmark: str,
        classifier: Sequence[tuple[str, str]],
        optional: str | None = None,
        map_norms: tuple[str, ...] = (),
    ) -> None:
        self.renames = renames
        self.prefixes = [outer + inner for outer in ('', 'module.') for inner in ('', *prefixes)]
        self.landmark = landmark
        (self.own_landmark,) = new_names(landmark, renames)
        self.classifier = tuple(theirs for theirs, _ in classifier)
        self.classifier_renames = classifier
        self.optional = optional
        self.map_norms = map_norms

    def backbone_weights(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The backbone's entries of a loaded file, with their official names or ours, the classifier left out.

        Raises:
            ValueError: The file has no such backbone, or some of its entries are no tensors.
        """
        weights = find_weights(checkpoint)
        prefix = self.find_prefix(weights, own=True)
        if prefix is None:
            raise ValueError(f'found no {self.landmark!r} in it, under any known prefix; {describe_keys(weights)}')
        mine = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        mine = {k: v for k, v in mine.items() if not k.startswith(self.classifier)}
        return as_tensors(mine)

    def find_prefix(self, weights: Mapping[str, Any], own: bool = False) -> str | None:
        """What stands before the keys of this family's backbone among some weights; None if it is not there.

        With ``own`` it may have our names as well as the official ones.
        """
        landmarks = (self.landmark, self.own_landmark) if own else (self.landmark,)
        return next((p for p in self.prefixes if any(p + key in weights for key in landmarks)), None)

    def classifier_weights(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The classifier's entries of a loaded released file, with the names of ``mmvit.classifiers``."""
        weights = find_weights(checkpoint)
        prefix = self.find_prefix(weights)
        return {
            ours + key.removeprefix(f'{prefix}{theirs}'): torch.as_tensor(value)
            for theirs, ours in self.classifier_renames
            for key, value in weights.items()
            if key.startswith(f'{prefix}{theirs}')
        }

    def is_official(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a loaded file holds such a backbone with its official names."""
        return self.find_prefix(find_weights(checkpoint)) is not None

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
            name = next(iter(new_names(key, self.renames)), None)
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
            raise ValueError(f'it has unexpected entries; {describe_keys(unknown)}')
        if disagreeing:
            raise ValueError(f'these entries are copies of one tensor and disagree; {describe_keys(disagreeing)}')
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
            raise ValueError(f'it has unexpected entries; {describe_keys(unknown)}')
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

    def _official_names(self, name: str) -> list[str]:
        """All of them; the number of a block that ours does not name stays ``#``."""
        found = [(theirs, ours, match) for theirs, ours in self.renames if (match := _pattern(ours).match(name))]
        longest = max((match.end() for *_, match in found), default=0)
        return [_filled(*rename) + name[longest:] for rename in found if rename[2].end() == longest]


def find_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """A loaded file's weights: timm's averages, what is under ``model`` or ``state_dict``, or the file itself."""
    nested = (checkpoint.get(key) for key in ('state_dict_ema', 'model', 'state_dict'))
    return next((weights for weights in nested if isinstance(weights, Mapping)), checkpoint)


def as_tensors(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Some weights, NumPy's arrays as tensors.

    Raises:
        ValueError: There is something else among them.
    """
    if others := [key for key, value in weights.items() if not isinstance(value, Tensor | np.ndarray)]:
        raise ValueError(f'these entries are no tensors; {describe_keys(others)}')
    return {key: torch.as_tensor(value) for key, value in weights.items()}


def new_names(key: str, renames: Sequence[tuple[str, str]]) -> list[str]:
    """A key with its beginning replaced, by every pair (old, new) whose old one fits.

    ``#`` stands for a number; the numbers of the old beginning fill the new one in order, surplus ones are dropped.
    ``#+1`` stands for the number plus one: ``('fc#+1.', 'fcs.#.')`` leads from ``fc1.`` to ``fcs.0.``.
    """
    return [
        _filled(new, old, match) + key[match.end() :] for old, new in renames if (match := _pattern(old).match(key))
    ]


def describe_mismatch(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> str:
    """The keys in which two layouts differ, in words; empty if they are equal."""

    def lines() -> Iterator[str]:
        if missing := sorted(expected.keys() - found.keys()):
            yield f'missing: {describe_keys(missing)}'
        if unexpected := sorted(found.keys() - expected.keys()):
            yield f'unexpected: {describe_keys(unexpected)}'
        if misshapen := [
            f'{key} {tuple(found[key])} instead of {tuple(shape)}'
            for key, shape in expected.items()
            if key in found and found[key] != shape
        ]:
            yield f'of another shape: {describe_keys(misshapen)}'

    return '; '.join(lines())


def describe_quantised(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The weights that are whole numbers where a model's own are not, in words; empty if there are none."""
    whole = [name for name, value in found.items() if own[name].is_floating_point() and not value.is_floating_point()]
    return f'whole numbers (of a quantised model?): {describe_keys(whole)}' if whole else ''


def describe_keys(names, shown: int = 20) -> str:
    """How many there are, and the first of them."""
    names = list(names)
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return f'{len(names)} keys: {", ".join(map(str, names[:shown]))}{more}'


def log_line(message: str) -> None:
    """One line to mmengine's current logger."""
    print_log(message, logger='current')


NUMBER = re.compile(r'#([+-]\d+)?')  # in a template


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
