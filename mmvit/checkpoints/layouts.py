"""Layouts of the official checkpoints: where a backbone's weights are in a file, and how they are named."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


class OfficialLayout:
    """How the official checkpoints of one family name the weights of its backbone.

    Args:
        renames: Pairs of key prefixes (official, mmvit); the first match counts. See :func:`new_names` for the syntax.
            Several official prefixes may map to one of mmvit: the official files then hold copies of one tensor.
        prefixes: Prefixes of the backbone's keys in the files of detectors and segmenters.
        landmark: An official key that every file with this backbone has, and that mmvit does not use.
        classifier: Pairs of key prefixes of the classifier (official, :mod:`mmvit.classifiers`).
        optional: Substring of the mmvit names of weights that only some files have.
        map_norms: Substrings of the mmvit names of norms whose official shape is (1, C, 1, 1) instead of (C,).
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
        (self.mmvit_landmark,) = new_names(landmark, renames)
        self.classifier = tuple(official for official, _ in classifier)
        self.classifier_renames = classifier
        self.optional = optional
        self.map_norms = map_norms

    def is_official(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a loaded file has this family's backbone with its official names."""
        return self.find_prefix(find_weights(checkpoint)) is not None

    def find_prefix(self, weights: Mapping[str, Any], *landmarks: str) -> str | None:
        """The prefix of the backbone's keys, or None if there is no such backbone.

        Args:
            weights: The weights of a file.
            landmarks: Keys to look for; by default the official landmark.
        """
        landmarks = landmarks or (self.landmark,)
        return next((p for p in self.prefixes if any(p + key in weights for key in landmarks)), None)

    def backbone_weights(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The backbone's weights in a loaded file, without prefix and classifier. Their names may be mmvit's.

        Raises:
            ValueError: The file has no such backbone, or some of its entries are not tensors.
        """
        weights = find_weights(checkpoint)
        prefix = self.find_prefix(weights, self.landmark, self.mmvit_landmark)
        if prefix is None:
            raise ValueError(f'found no {self.landmark!r} in it, under any known prefix; {describe_keys(weights)}')
        if others := [key for key in weights if not isinstance(key, str)]:
            raise ValueError(f'these keys are no names; {describe_keys(others)}')
        backbone = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        return as_tensors({k: v for k, v in backbone.items() if not k.startswith(self.classifier)})

    def classifier_weights(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The classifier's weights in a loaded official file, with the names of :mod:`mmvit.classifiers`."""
        weights = find_weights(checkpoint)
        prefix = self.find_prefix(weights)
        return {
            name + key.removeprefix(f'{prefix}{official}'): torch.as_tensor(value)
            for official, name in self.classifier_renames
            for key, value in weights.items()
            if key.startswith(f'{prefix}{official}')
        }

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert official names to those of mmvit, and merge the copies of a tensor.

        Raises:
            ValueError: A key does not belong to this family, or copies of a tensor differ.
        """
        renamed: dict[str, Tensor] = {}
        origin: dict[str, str] = {}
        unknown = []
        differing = []
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
                differing += [origin[name], key]
        if unknown:
            raise ValueError(f'it has unexpected entries; {describe_keys(unknown)}')
        if differing:
            raise ValueError(f'these entries are copies of one tensor and disagree; {describe_keys(differing)}')
        return renamed

    def restore(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the names of mmvit to the official ones, with every copy that the official files hold.

        Raises:
            ValueError: A key does not belong to this family.
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

    def required(self, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of a model that a file must have: optional weights are required only if it has some of them."""
        if self.optional is None or any(self.optional in name for name in found):
            return own
        return {name: value for name, value in own.items() if self.optional not in name}

    def _official_names(self, name: str) -> list[str]:
        """All official names of a weight. A ``#`` in them stands for the number of any block."""
        found = [(old, new, match) for old, new in self.renames if (match := _pattern(new).match(name))]
        longest = max((match.end() for *_, match in found), default=0)
        return [_filled(*rename) + name[longest:] for rename in found if rename[2].end() == longest]


def find_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights in a loaded file: timm's averages, the entry ``model`` or ``state_dict``, or the file itself."""
    nested = (checkpoint.get(key) for key in ('state_dict_ema', 'model', 'state_dict'))
    return next((weights for weights in nested if isinstance(weights, Mapping)), checkpoint)


def as_tensors(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert NumPy arrays among some weights to tensors.

    Raises:
        ValueError: Some entries are neither, or sparse, complex, quantised or without values (on the meta device).
    """
    if others := [key for key, value in weights.items() if not isinstance(value, Tensor | np.ndarray)]:
        raise ValueError(f'these entries are no tensors; {describe_keys(others)}')
    tensors = {key: torch.as_tensor(value) for key, value in weights.items()}
    if special := [key for key, value in tensors.items() if not is_plain(value)]:
        raise ValueError(f'these entries are sparse, complex, quantised or without values; {describe_keys(special)}')
    return tensors


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an array of plain numbers."""
    return tensor.layout == torch.strided and not (tensor.is_complex() or tensor.is_quantized or tensor.is_meta)


def new_names(key: str, renames: Sequence[tuple[str, str]]) -> list[str]:
    """Replace the prefix of a key, once by every pair (old, new) whose old prefix matches.

    ``#`` stands for a number. The numbers in the old prefix fill the new one in order; surplus numbers are dropped.
    ``#+1`` stands for the number plus one: ``('fc#+1.', 'fcs.#.')`` renames ``fc1.`` to ``fcs.0.``.
    """
    return [
        _filled(new, old, match) + key[match.end() :] for old, new in renames if (match := _pattern(old).match(key))
    ]


def describe_keys(keys: Collection[str], shown: int = 20) -> str:
    """The number of keys, and the first of them."""
    more = f' and {len(keys) - shown} more' if len(keys) > shown else ''
    return f'{len(keys)} keys: {", ".join(map(str, list(keys)[:shown]))}{more}'


NUMBER = re.compile(r'#([+-]\d+)?')  # in a template


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(r'(\d+)'.join(re.escape(text) for text in NUMBER.sub('#', template).split('#')))


def _filled(template: str, other: str, match: re.Match[str]) -> str:
    """Fill a template with the numbers that another one matched. Surplus numbers, and surplus ``#``, are ignored."""
    for number, shift in zip(match.groups(), NUMBER.findall(other), strict=True):
        if place := NUMBER.search(template):
            index = int(number) - int(shift or 0) + int(place[1] or 0)
            template = f'{template[: place.start()]}{index}{template[place.end() :]}'
    return template
