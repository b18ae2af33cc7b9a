"""What the backbones share: their contract with OpenMMLab, checked input, freezing, released weights."""

from __future__ import annotations

import copy
import re
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmvit import cpu
from mmvit.checkpoint import OfficialLayout, describe_mismatch, describe_quantised, log_line
from mmvit.files import read_checkpoint


class Backbone(BaseModule, metaclass=ABCMeta):
    """A backbone that returns the feature maps of some of its four stages.

    A subclass builds ``stem`` and ``stages`` (no more than ``out_indices`` needs) and declares ``stage_channels`` and
    ``stage_strides`` of all four. Weights are initialised at construction; ``init_weights`` applies ``init_cfg``.

    Args:
        arch: Name of a variant in ``arch_zoo``, or a mapping with the same keys.
        out_indices: Ascending indices of the stages whose maps are returned.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages: they stay in eval mode and
            get no gradient.
        drop_path_rate: Stochastic depth of the last block.
        norm_eval: Keep batch norms in eval mode while training.
        in_channels: Channels of the input.
        init_cfg: mmengine's, or ``dict(type='mmvit.OfficialWeights', checkpoint=...)`` for a released file.
    """

    arch_zoo: ClassVar[dict[str, dict[str, Any]]]
    official_layout: ClassVar[OfficialLayout]
    num_stages: ClassVar[int] = 4
    min_size: ClassVar[int] = 32

    stem: nn.Module
    stages: nn.ModuleList
    stage_channels: tuple[int, ...]
    stage_strides: tuple[int, ...]

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        out_indices: Sequence[int],
        frozen_stages: int,
        drop_path_rate: float,
        norm_eval: bool,
        in_channels: int,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = self.resolve_arch(arch)
        self.out_indices = self._checked_out_indices(out_indices)
        if frozen_stages not in range(-1, self.num_stages + 1):
            raise ValueError(f'frozen_stages must be -1 .. {self.num_stages}, not {frozen_stages!r}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be at least 0 and less than 1, not {drop_path_rate!r}')
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels must be a positive integer, not {in_channels!r}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.in_channels = in_channels

    def finish(self) -> None:
        """The last step of every constructor: initialise the weights, and freeze what is to be frozen."""
        self.reset_parameters()
        cpu.convolution.use_in(self)
        self.train()

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise the weights as the authors."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C_i, H_i, W_i) of an image batch (B, C, H, W), one per entry of ``out_indices``."""

    def forward_for_classifier(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The maps of ``forward``, and the one (B, C, h, w) whose mean a classifier reads."""
        maps = self(x)
        return maps, maps[-1]

    @classmethod
    @abstractmethod
    def check_arch(cls, arch: Mapping[str, Any]) -> None:
        """Raise ValueError if the values of an arch mapping contradict one another (its keys are checked already)."""

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned maps."""
        return tuple(self.stage_channels[i] for i in self.out_indices)

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Strides of the returned maps against the input."""
        return tuple(self.stage_strides[i] for i in self.out_indices)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter, and the number of layers, for layer-wise learning-rate decay.

        The stem is layer 0, then each block is one (in parallel paths those that stand side by side are). What a stage
        has before or beside its blocks counts with its first, what comes after them with its last. The number of
        layers counts one more for what follows the backbone.

        Args:
            param_name: As in the model's ``named_parameters()``.
            prefix: Of the backbone's parameters there, 'backbone.' for one.
        """
        depths = (self.arch.get('depths') or self.arch['num_layers'])[: len(self.stages)]
        name = param_name.removeprefix(prefix)
        layer = 0
        if stage := re.match(r'stages\.(\d+)\.', name):
            index = int(stage[1])
            block = re.search(r'\.blocks\.(\d+)\.', name)
            is_last = re.match(r'aggregate|det_norm', name[stage.end() :])
            layer = 1 + sum(depths[:index]) + (int(block[1]) if block else depths[index] - 1 if is_last else 0)
        return layer, sum(depths) + 2

    def train(self, mode: bool = True):
        """Set training mode, but for frozen parts and, with ``norm_eval``, batch norms."""
        super().train(mode)
        for part in [self.stem, *self.stages][: self.frozen_stages + 1]:
            part.eval().requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def fuse(self) -> Backbone:
        """A copy for inference with the batch norms folded into the convolutions before them; this one stays."""
        return fuse_conv_bn(copy.deepcopy(self).eval()).requires_grad_(False)

    def init_weights(self) -> None:
        """Apply ``init_cfg`` to the weights that the constructor initialised."""
        if not self.init_cfg:
            log_line(f'{type(self).__name__} has no init_cfg: it starts from random weights')
        super().init_weights()

    def load_official(self, checkpoint: str, sha256: str | None = None) -> None:
        """Load a released file, or one of mmvit's own, completely.

        Stages that ``out_indices`` does not need are left out, which one line tells.

        Args:
            checkpoint: Path or http(s) address.
            sha256: What the file's must be, as in :func:`mmvit.files.read_checkpoint`.

        Raises:
            FileNotFoundError: There is no such file.
            RuntimeError: The file is not to be had, or cannot be read safely.
            ValueError: It is not a whole checkpoint of this family, or not of this arch.
        """
        loaded = read_checkpoint(checkpoint, sha256)
        try:
            weights = self.convert_official(loaded)
        except ValueError as error:
            raise ValueError(f'{checkpoint}: {error}') from error
        self.load_converted(weights, checkpoint)

    def load_converted(self, weights: Mapping[str, Tensor], checkpoint: str) -> None:
        """Load what ``convert_official`` gave for the file ``checkpoint``, completely.

        Stages that ``out_indices`` does not need are left out, which one line tells.

        Raises:
            ValueError: The weights are not of this arch.
        """
        weights = dict(weights)
        self.resize_tables(weights)
        own = self.state_dict()
        not_built = tuple(f'stages.{i}.' for i in range(len(self.stages), self.num_stages))
        fitting = {k: v for k, v in weights.items() if not k.startswith(not_built)} if not_built else weights
        mismatch = describe_mismatch(_shapes(fitting), self.official_layout.expected(_shapes(own), _shapes(weights)))
        if mismatch:
            raise ValueError(f'{checkpoint} does not fit this {type(self).__name__} ({self.arch}): {mismatch}')
        if quantised := describe_quantised(fitting, own):
            raise ValueError(f'{checkpoint} has {quantised}')
        self.load_state_dict({**own, **fitting}, strict=True)
        notes = [f'leaving out {", ".join(s.rstrip(".") for s in not_built)} (not built)'] if not_built else []
        if own.keys() - fitting.keys():
            notes.append(f'keeping the initial {self.official_layout.optional} (the file has none)')
        log_line(f'loaded {len(fitting)} tensors of {type(self).__name__} from {"; ".join([checkpoint, *notes])}')

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self.resize_tables(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def resize_tables(self, weights: dict[str, Tensor], prefix: str = '') -> None:
        """Bring weights whose shape depends on a training size (none, by default) to this model's, in place.

        Every way of loading a state dict comes through here.
        """

    @classmethod
    def convert_official(cls, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state dict of a released file's full backbone, for ``load_state_dict(..., strict=True)``.

        Args:
            checkpoint: A loaded file in any released shape: bare, or under ``model`` or ``state_dict``; with the
                prefixes of detectors, segmenters or DataParallel; with or without the classifier. Or one that has
                our names already, of any arch; of timm's training files the averaged weights, if they have some.

        Raises:
            ValueError: The file is not one of this family's known archs, or copies of one tensor in it disagree; the
                keys are named.
        """
        try:
            weights = cls.official_layout.backbone_weights(checkpoint)
            if cls.official_layout.own_landmark in weights:
                return weights
            weights = cls.official_layout.rename(weights)
        except ValueError as error:
            raise ValueError(f'not a released {cls.__name__} checkpoint: {error}') from None
        cls.recognise_arch(weights)
        return weights

    @classmethod
    def recognise_arch(cls, weights: Mapping[str, Tensor]) -> str:
        """Name of the known arch whose full backbone has these weights, by their names and shapes.

        Raises:
            ValueError: There is none; the differences to the nearest are named.
        """
        shapes = _shapes(weights)
        zoo = {name: cls.official_layout.expected(own, shapes) for name, own in _zoo_shapes(cls).items()}
        mismatches = {name: describe_mismatch(shapes, expected) for name, expected in zoo.items()}
        if all(mismatches.values()):
            nearest = max(zoo, key=lambda name: len(shapes.items() & zoo[name].items()))
            raise ValueError(
                f'not a released {cls.__name__} checkpoint: it is nearest to arch {nearest!r}, '
                f'with these differences (names of mmvit): {mismatches[nearest]}'
            )
        return next(name for name, mismatch in mismatches.items() if not mismatch)

    @classmethod
    def to_official(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A backbone's state dict in the layout of the released files, bare and without a classifier.

        Raises:
            ValueError: It is not a state dict of this family's backbone; the keys are named.
        """
        try:
            return cls.official_layout.restore(state_dict)
        except ValueError as error:
            raise ValueError(f'not the state dict of a {cls.__name__}: {error}') from None

    @classmethod
    def resolve_arch(cls, arch: str | Mapping[str, Any]) -> dict[str, Any]:
        """The settings of an arch given by name or as a mapping, checked."""
        names = ', '.join(map(repr, cls.arch_zoo))
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(f'{cls.__name__} has no arch {arch!r}; it has {names}')
            return dict(cls.arch_zoo[arch])
        if not isinstance(arch, Mapping):
            raise TypeError(f'arch must be one of {names}, or a dict, not {type(arch).__name__}')
        expected = next(iter(cls.arch_zoo.values())).keys()
        if missing := sorted(expected - arch.keys()):
            raise ValueError(f'the arch dict of {cls.__name__} lacks {missing}')
        if unknown := sorted(arch.keys() - expected):
            raise ValueError(f'the arch dict of {cls.__name__} has unknown keys {unknown}; it takes {sorted(expected)}')
        cls.check_arch(arch)
        return dict(arch)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is an image batch that this backbone can take."""
        if x.ndim != 4:
            raise ValueError(f'{type(self).__name__} takes images (B, C, H, W), not a tensor of shape {tuple(x.shape)}')
        if x.shape[1] != self.in_channels:
            raise ValueError(f'{type(self).__name__} was built for {self.in_channels} channels, not {x.shape[1]}')
        if min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f'{type(self).__name__} takes images of {self.min_size} pixels or more a side, not {tuple(x.shape[2:])}'
            )

    @classmethod
    def check_stagewise(cls, arch: Mapping[str, Any], *keys: str) -> None:
        """Raise ValueError unless each of these entries of an arch holds a positive integer for each stage."""
        for key in keys:
            values = arch[key]
            if not isinstance(values, Sequence) or len(values) != cls.num_stages:
                raise ValueError(f'{key} must have one entry for each of {cls.num_stages} stages, not {values!r}')
            if any(not isinstance(value, int) or value < 1 for value in values):
                raise ValueError(f'{key} must be positive integers, not {values!r}')

    @classmethod
    def _checked_out_indices(cls, out_indices: Sequence[int]) -> tuple[int, ...]:
        indices = tuple(out_indices)
        if not indices or any(i not in range(cls.num_stages) for i in indices):
            raise ValueError(f'out_indices must name stages 0 .. {cls.num_stages - 1}, not {indices}')
        if list(indices) != sorted(set(indices)):
            raise ValueError(f'out_indices must be ascending, each stage once, not {indices}')
        return indices


def recomputed(function: Callable[..., Any], wanted: bool, preserve_rng_state: bool = False) -> Callable[..., Any]:
    """``function``; where wanted, computed again in the backward pass instead of storing what is in it.

    Args:
        function: Of tensors and other arguments.
        wanted: Whether to recompute; without gradients there is nothing to recompute.
        preserve_rng_state: Draw the same random numbers again. Only a function that draws some needs it.
    """
    if not (wanted and torch.is_grad_enabled()):
        return function
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=preserve_rng_state)


def no_autocast(x: Tensor) -> torch.autocast:
    """Turns mixed precision off for the device of ``x``."""
    return torch.autocast('cpu' if x.is_meta else x.device.type, enabled=False)  # it refuses the device 'meta'


@cache
def _zoo_shapes(cls: Any) -> dict[str, dict[str, torch.Size]]:
    with torch.device('meta'):
        return {name: _shapes(cls(arch=name).state_dict()) for name in cls.arch_zoo}


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items()}
