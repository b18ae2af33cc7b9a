"""Loading a backbone's weights completely: nothing is skipped or missing without an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn

from mmvit.checkpoints.layouts import OfficialLayout, describe_keys
from mmvit.registry import WEIGHT_INITIALIZERS, register


class ConvertedWeights(NamedTuple):
    """A backbone's weights with the names of mmvit.

    Attributes:
        arch: Name of the arch that the weights were recognised as. None if the file had the names of mmvit already:
            it may be of any arch, also one that has no name.
        weights: A full backbone's state dict, for ``load_state_dict(weights, strict=True)``.
    """

    arch: str | None
    weights: dict[str, Tensor]


@runtime_checkable
class LoadsOfficialWeights(Protocol):
    """A module that can load an official checkpoint, as mmvit's backbones can."""

    def load_official(self, checkpoint: str, sha256: str | None = None) -> None:
        """Load a file given by path or address, and check its sha256 if one is given."""


@register(WEIGHT_INITIALIZERS)
class OfficialWeights:
    """Initialiser for a backbone's ``init_cfg``: loads an official checkpoint completely.

    It also takes a file of mmvit that holds the backbone: alone, in a classifier or in a detector.
    ``init_cfg=dict(type='mmvit.OfficialWeights', checkpoint='mpvit_small.pth')``. Unlike mmengine's ``Pretrained``,
    it raises an error if weights are missing or do not fit.

    Args:
        checkpoint: Path or http(s) address of the file.
        sha256: Expected sha256 of the file, if known.
    """

    def __init__(self, checkpoint: str, sha256: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.sha256 = sha256

    def __call__(self, module: nn.Module) -> None:
        if not isinstance(module, LoadsOfficialWeights):
            raise TypeError(
                f"OfficialWeights belongs in the init_cfg of one of mmvit's backbones, not of {type(module).__name__}"
            )
        module.load_official(self.checkpoint, self.sha256)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'{type(self).__name__}: load from {self.checkpoint}')


def recognise_arch(
    weights: Mapping[str, Tensor], archs: Mapping[str, Mapping[str, Tensor]], layout: OfficialLayout
) -> str:
    """The name of the arch whose full backbone has weights of these names and shapes.

    Args:
        weights: A backbone's weights with the names of mmvit.
        archs: The state dict of each arch; it may be on the meta device.
        layout: Of the family; it says which weights are optional.

    Raises:
        ValueError: There is no such arch. The message names the differences to the nearest one.
    """
    required = {arch: layout.required(own, weights) for arch, own in archs.items()}
    mismatches = {arch: describe_mismatch(weights, own) for arch, own in required.items()}
    if matching := [arch for arch, mismatch in mismatches.items() if not mismatch]:
        return matching[0]
    nearest = nearest_arch(weights, archs)
    raise ValueError(
        f'it is nearest to arch {nearest!r}, with these differences (names of mmvit): {mismatches[nearest]}'
    )


def nearest_arch(weights: Mapping[str, Tensor], archs: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The name of the arch that shares most names and shapes with some weights; see :func:`recognise_arch`."""

    def shared(arch: str) -> int:
        return sum(key in weights and weights[key].shape == own.shape for key, own in archs[arch].items())

    return max(archs, key=shared)


def load_strictly(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    layout: OfficialLayout,
    not_built: Sequence[str] = (),
) -> None:
    """Load a full backbone's weights into a model, and log one line about it.

    Args:
        model: The backbone.
        weights: With the names of mmvit.
        source: Name of the file, for the log.
        layout: Of the family. Optional weights that the file does not have keep their initial values.
        not_built: Modules that the file has and this model was built without.

    Raises:
        ValueError: Weights are missing, unexpected, of another shape or of an integer type; the message names them.
    """
    own = model.state_dict()
    skipped = tuple(f'{module}.' for module in not_built)
    loaded = {name: value for name, value in weights.items() if not name.startswith(skipped)}
    if mismatch := describe_mismatch(loaded, layout.required(own, weights)):
        raise ValueError(mismatch)
    model.load_state_dict({**own, **loaded}, strict=True)
    notes = [f'leaving out {", ".join(not_built)} (not built)'] if not_built else []
    if own.keys() - loaded.keys():
        notes.append(f'keeping the initial {layout.optional} (the file has none)')
    line = '; '.join([f'loaded {len(loaded)} tensors of {type(model).__name__} from {source}', *notes])
    print_log(line, logger='current')


def describe_shortfall(found: Mapping[str, Tensor], own: Mapping[str, Tensor], layout: OfficialLayout) -> str:
    """How some weights fail to fill a model's state dict ``own``; empty if they fill it. They may be more than it has.

    Counts of batches, and optional weights of which there is none, need not be there.
    """
    required = {
        name: value
        for name, value in layout.required(own, found).items()
        if name in found or not name.endswith('num_batches_tracked')
    }
    return describe_mismatch({name: value for name, value in found.items() if name in required}, required)


def describe_mismatch(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How some weights differ from a state dict in names, shapes and kinds of number; empty if they do not."""

    def lines() -> Iterator[str]:
        if missing := sorted(expected.keys() - found.keys()):
            yield f'missing: {describe_keys(missing)}'
        if unexpected := sorted(found.keys() - expected.keys()):
            yield f'unexpected: {describe_keys(unexpected)}'
        common = {key: (found[key], own) for key, own in expected.items() if key in found}
        if misshapen := [
            f'{key} {tuple(value.shape)} instead of {tuple(own.shape)}'
            for key, (value, own) in common.items()
            if value.shape != own.shape
        ]:
            yield f'of another shape: {describe_keys(misshapen)}'
        if integers := [
            key for key, (value, own) in common.items() if own.is_floating_point() and not value.is_floating_point()
        ]:
            yield f'whole numbers (of a quantised model?): {describe_keys(integers)}'

    return '; '.join(lines())
