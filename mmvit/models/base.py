"""The base class of the backbones: their contract with OpenMMLab, checked arguments, freezing, official weights."""

from __future__ import annotations

import copy
import inspect
import logging
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, ClassVar

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmvit import cpu
from mmvit.checkpoints.files import read_checkpoint
from mmvit.checkpoints.layouts import OfficialLayout, describe_keys
from mmvit.checkpoints.loading import ConvertedWeights, describe_shortfall, load_strictly, recognise_arch


class Backbone(BaseModule, metaclass=ABCMeta):
    """A backbone of four stages that returns the feature maps of some of them.

    A subclass initialises its weights in the constructor; ``init_weights`` applies ``init_cfg`` afterwards.

    Args:
        arch: Name of a variant in ``arch_zoo``, or a mapping with the same keys.
        out_indices: Ascending indices of the stages whose maps are returned.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages: they stay in eval mode and
            get no gradient.
        drop_path_rate: Stochastic depth of the last block.
        norm_eval: Keep batch norms in eval mode while training.
        in_channels: Channels of the input.
        init_cfg: mmengine's, or ``dict(type='mmvit.OfficialWeights', checkpoint=...)`` for an official file.

    Attributes:
        partial_weights: Take from mmengine's loaders what fits, where weights are missing or of another shape; such
            weights are refused otherwise. ``CheckSetupHook`` sets it.
        family_name: Name of the family in the names of configs and timm models.
        arch_zoo: The settings of each variant, by its name.
        official_layout: Layout of the official checkpoints.
        block_class: Class of the transformer blocks: the units that FSDP shards and ``torch.compile`` compiles.
        after_blocks: Names of the modules of a stage that come after its blocks.
        position_tables: Name endings of the parameters that hold positions; they get no weight decay in timm.
        classifier_norm_eps: Epsilon of the layer norm before the classifier, None if there is no such norm.
        classifier_options: Arguments of this class in the classification networks.
        min_size: Smallest height and width of an image, in pixels.
        stem: What comes before the stages.
        stages: The stages, no more than ``out_indices`` needs. The blocks of each are in lists called ``blocks``.
        depths: Number of blocks of each of the four stages; parallel ones count once.
        stage_channels: Channels of the map of each of the four stages.
        stage_strides: Strides of these maps.
    """

    partial_weights: bool = False
    family_name: ClassVar[str]
    arch_zoo: ClassVar[dict[str, dict[str, Any]]]
    official_layout: ClassVar[OfficialLayout]
    block_class: ClassVar[type[nn.Module]]
    after_blocks: ClassVar[tuple[str, ...]] = ()
    position_tables: ClassVar[tuple[str, ...]] = ()
    classifier_norm_eps: ClassVar[float | None] = None
    classifier_options: ClassVar[dict[str, Any]] = {}
    num_stages: ClassVar[int] = 4
    min_size: ClassVar[int] = 32

    stem: nn.Module
    stages: nn.ModuleList
    depths: Sequence[int]
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
        cpu.bfloat16.use_in(self)
        self.train()

    def reset_parameters(self) -> None:
        """Initialise the weights as the authors; as PyTorch, unless a subclass says how."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C_i, H_i, W_i) of an image batch (B, C, H, W), one per entry of ``out_indices``."""

    def forward_for_classifier(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The maps of ``forward``, and the map (B, C, h, w) whose mean is the input of a classifier."""
        maps = self(x)
        return maps, maps[-1]

    @classmethod
    def timm_cfg(cls, arch: str) -> dict[str, Any]:
        """Entries of timm's ``pretrained_cfg`` that differ from the defaults of :mod:`mmvit.classifiers`."""
        return {}

    @classmethod
    @abstractmethod
    def check_arch(cls, arch: Mapping[str, Any]) -> None:
        """Raise ValueError if the values of an arch mapping are not valid. Its keys are checked already."""

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

        The stem is layer 0. Each block is a layer; blocks side by side in parallel paths share one. The other modules
        of a stage count with its first block, those of ``after_blocks`` with its last. The number of layers includes
        one for the modules that follow the backbone.

        Args:
            param_name: Name in the ``named_parameters()`` of the model.
            prefix: Prefix of the backbone's parameters there, such as 'backbone.'.
        """
        depths = self.depths[: len(self.stages)]
        num_layers = sum(depths) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if parts[0] != 'stages':
            return 0, num_layers
        stage = int(parts[1])
        block = 0
        if 'blocks' in parts:
            block = int(parts[parts.index('blocks') + 1])
        elif parts[2] in self.after_blocks:
            block = depths[stage] - 1
        return 1 + sum(depths[:stage]) + block, num_layers

    def train(self, mode: bool = True):
        """Set the training mode. Frozen parts and, with ``norm_eval``, batch norms stay in eval mode."""
        super().train(mode)
        for part in [self.stem, *self.stages][: self.frozen_stages + 1]:
            part.eval().requires_grad_(False)
        if mode:
            cpu.give_back(self)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def fuse(self) -> Backbone:
        """A copy for inference in which the batch norms are merged into the convolutions before them."""
        return fuse_conv_bn(copy.deepcopy(self).eval()).requires_grad_(False)

    def init_weights(self) -> None:
        """Apply ``init_cfg`` to the weights that the constructor initialised."""
        if not self.init_cfg:
            print_log(f'{type(self).__name__} has no init_cfg: it starts from random weights', logger='current')
        super().init_weights()

    def load_official(self, checkpoint: str, sha256: str | None = None) -> None:
        """Load an official file, or one of mmvit, completely.

        Stages that this backbone was built without are left out; the log says so.

        Args:
            checkpoint: Path or http(s) address.
            sha256: Expected sha256 of the file, see :func:`mmvit.checkpoints.files.read_checkpoint`.

        Raises:
            FileNotFoundError: There is no such file.
            RuntimeError: The file cannot be downloaded, or not be read safely.
            ValueError: It is not a complete checkpoint of this family, or of another arch.
        """
        loaded = read_checkpoint(checkpoint, sha256)
        try:
            weights = self.convert_official(loaded).weights
        except ValueError as error:
            raise ValueError(f'{checkpoint}: {error}') from error
        self.load_converted(weights, checkpoint)

    def load_converted(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Load the weights that ``convert_official`` returned, completely.

        Stages that this backbone was built without are left out; the log says so.

        Args:
            weights: A full backbone's.
            source: Name of their file, for messages.

        Raises:
            ValueError: The weights do not fit this arch.
        """
        resized = dict(weights)
        not_built = [f'stages.{i}' for i in range(len(self.stages), self.num_stages)]
        try:
            self.resize_tables(resized)
            load_strictly(self, resized, source, self.official_layout, not_built)
        except ValueError as error:
            raise ValueError(f'{source} does not fit this {type(self).__name__} ({self.arch}): {error}') from None

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self.resize_tables(state_dict, prefix)
        self.check_weights(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_weights(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> None:
        """Refuse the weights of another network. Every way to load a state dict calls this method.

        PyTorch's ``load_state_dict`` tells its caller what is missing. mmengine's loader does not: what it loads must
        be complete, unless ``partial_weights`` is set.

        Raises:
            RuntimeError: What is under the prefix is of another network, or not all that mmengine should have.
        """
        name = type(self).__name__
        place = f"under '{prefix}'" if prefix else 'in this file'
        weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if not weights:
            print_log(f'{name} keeps its weights: there are none {place}', 'current', logging.WARNING)
        elif self.official_layout.mmvit_landmark not in weights and (whose := self._whose(weights)):
            raise RuntimeError(
                f'The weights {place} are not of this {name}: they are those of {whose}. Give a file of {name}, or '
                f'build the model that the file is of.'
            )
        elif (
            not self.partial_weights
            and is_loaded_by_mmengine()
            and (shortfall := describe_shortfall(weights, self.state_dict(), self.official_layout))
        ):
            raise RuntimeError(
                f'The weights {place} do not fill this {name} ({self.arch}): they are those of '
                f'{self._whose(weights) or "a part of it"}. Give a file of this arch. To load what fits, set '
                f"default_hooks.check_setup = dict(type='mmvit.CheckSetupHook', partial_weights=True) in the config, "
                f"or call PyTorch's load_state_dict(weights, strict=False). {shortfall}"
            )

    def _whose(self, weights: Mapping[str, Tensor]) -> str:
        """What a state dict holds, as far as mmvit knows; empty if it has names of this backbone and no landmark."""
        from mmvit.models.families import recognise  # noqa: PLC0415  that imports this file

        if found := recognise(weights):
            return found
        is_part = any(key in weights for key, _ in chain(self.named_parameters(), self.named_buffers()))
        return '' if is_part else f'no backbone of mmvit ({describe_keys(weights)})'

    def resize_tables(self, weights: dict[str, Tensor], prefix: str = '') -> None:
        """Resize weights whose shape depends on the training size to this model's, in place. By default there are none.

        Every way to load a state dict calls this method.
        """

    @classmethod
    def convert_official(cls, checkpoint: Mapping[str, Any]) -> ConvertedWeights:
        """Convert the backbone of an official file to the names of mmvit.

        Args:
            checkpoint: A loaded official file in any form: bare, or under ``model`` or ``state_dict``; with the
                prefixes of detectors, segmenters or DataParallel; with or without the classifier. A file with the names
                of mmvit is accepted too. If timm trained it with averaging, the averaged weights are taken.

        Returns:
            The name of the arch and the weights, a named tuple ``(arch, weights)``. ``arch`` is None if the file has
            the names of mmvit already: these may be of any arch.

        Raises:
            ValueError: The file does not have a complete backbone of this family, or copies of a tensor in it differ.
                The message names the keys.
        """
        try:
            weights = cls.official_layout.backbone_weights(checkpoint)
            if cls.official_layout.mmvit_landmark in weights:
                return ConvertedWeights(None, weights)
            weights = cls.official_layout.rename(weights)
            return ConvertedWeights(recognise_arch(weights, zoo_weights(cls), cls.official_layout), weights)
        except ValueError as error:
            raise ValueError(f'not an official {cls.__name__} checkpoint: {error}') from None

    @classmethod
    def to_official(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a backbone's state dict to the layout of the official files, bare and without a classifier.

        Raises:
            ValueError: It is not the state dict of a backbone of this family. The message names the keys.
        """
        try:
            return cls.official_layout.restore(state_dict)
        except ValueError as error:
            raise ValueError(f'not the state dict of a {cls.__name__}: {error}') from None

    @classmethod
    def resolve_arch(cls, arch: str | Mapping[str, Any]) -> dict[str, Any]:
        """The settings of an arch, given by name or as a mapping that is checked."""
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
        """Raise ValueError unless ``x`` is a batch of images that this backbone can process."""
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
        """Raise ValueError unless each of these entries of an arch has a positive integer for each stage."""
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


def is_loaded_by_mmengine() -> bool:
    """Whether mmengine's ``load_state_dict`` loads now: it logs what does not fit, and goes on."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not mmengine_load_state_dict.__code__:
        frame = frame.f_back
    return frame is not None


@cache
def zoo_weights(cls: Any) -> dict[str, dict[str, Tensor]]:
    """The state dict of each arch of a family, on the meta device."""
    with torch.device('meta'):
        return {arch: cls(arch).state_dict() for arch in cls.arch_zoo}
