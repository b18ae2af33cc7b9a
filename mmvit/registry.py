"""The package's own registries, children of mmengine's.

mmengine imports this module when it meets the scope ``mmvit`` in a name, so that ``type='mmvit.MPViT'``
works from mmdet, mmseg and plain mmengine configs without any import.
"""

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import STRATEGIES as ROOT_STRATEGIES
from mmengine.registry import WEIGHT_INITIALIZERS as ROOT_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='mmvit', locations=['mmvit.models'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='mmvit', locations=['mmvit.hooks', 'mmvit.training'])
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=ROOT_WEIGHT_INITIALIZERS, scope='mmvit', locations=['mmvit.checkpoints.loading']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=ROOT_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmvit',
    locations=['mmvit.optim'],
)
STRATEGIES = Registry('strategy', parent=ROOT_STRATEGIES, scope='mmvit', locations=['mmvit.sharding'])


def register(registry: Registry):
    """Decorator: register a class in ``registry`` (as ``mmvit.Name``) and its root (as ``Name``, once imported)."""

    def add(cls):
        registry.register_module(module=cls)
        registry.root.register_module(module=cls)
        return cls

    return add
