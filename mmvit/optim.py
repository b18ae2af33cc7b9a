"""Layer-wise learning-rate decay: deeper layers of a backbone get a higher rate."""

from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmvit.registry import OPTIM_WRAPPER_CONSTRUCTORS, register


@register(OPTIM_WRAPPER_CONSTRUCTORS)
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with a learning rate that decays by a factor per layer from the end of a backbone.

    In a config: ``optim_wrapper=dict(constructor='mmvit.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9))``; mmengine's other ``paramwise_cfg`` keys hold too. Layers are counted by
    ``get_layer_depth(param_name, prefix) -> (layer, number of layers)`` of any module in the model that has it, as
    mmvit's backbones do; parameters elsewhere keep the full rate.

    Args:
        optim_wrapper_cfg: mmengine's.
        paramwise_cfg: mmengine's, and ``layer_decay_rate``, more than 0 and at most 1.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.decay_rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(self.decay_rate, int | float) or not 0 < self.decay_rate <= 1:
            raise ValueError(
                f'paramwise_cfg needs a layer_decay_rate of more than 0 and at most 1, not {self.decay_rate!r}'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: int | float | None = None
    ) -> None:
        """Append a parameter group for each parameter of a module to ``params``."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:  # a recursive call for a part of the model
            return
        scales = self.scales(module)
        for group in params:
            (parameter,) = group['params']
            group['lr'] = group.get('lr', self.optimizer_cfg['lr']) * scales.get(parameter, 1.0)

    def scales(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """The factor of the learning rate of each parameter that belongs to a layer.

        Raises:
            TypeError: No module of the model has ``get_layer_depth``.
        """
        layered = [(name, module) for name, module in model.named_modules() if hasattr(module, 'get_layer_depth')]
        if not layered:
            raise TypeError(f'layer-wise decay needs a backbone with get_layer_depth; {type(model).__name__} has none')
        scales = {}
        for name, module in layered:
            for own_name, parameter in module.named_parameters():
                layer, count = module.get_layer_depth(f'{name}.{own_name}', f'{name}.')  # type: ignore[operator]
                scales[parameter] = self.decay_rate ** (count - 1 - layer)
        return scales
