"""Lets torch's safe loading read mmengine's own checkpoints.

Since PyTorch 2.6, ``torch.load`` unpickles only what is on its allow-list. An mmengine checkpoint also holds the
message hub: ``HistoryBuffer`` objects, NumPy arrays and NumPy scalars. Their classes are added here, and nothing else.
"""

from pickle import UnpicklingError

import numpy as np
from mmengine.logging import HistoryBuffer

from mmvit.compat import add_safe_globals, multiarray

CORES = ('core', '_core')
MAKERS = ('_reconstruct', 'scalar')
HISTORY_STATISTICS = ('min', 'max', 'mean', 'current')


def history_buffer_getattr(owner, name):
    """``builtins.getattr`` as a checkpoint may use it: to name one of HistoryBuffer's statistics.

    Raises:
        UnpicklingError: For any other attribute or owner.
    """
    if owner is HistoryBuffer and name in HISTORY_STATISTICS:
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(f'refused: this file asks for the attribute {name!r} of {owner!r} while it is being loaded')


def allow_mmengine_checkpoints() -> None:
    """Put what mmengine stores in a checkpoint on torch's allow-list (again and again does no harm)."""
    add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            np.dtypes.Float64DType,
            np.dtypes.Int64DType,
            # Pickles name these functions by their place in the NumPy that wrote them, 1 or 2.
            *((getattr(multiarray, name), f'numpy.{core}.multiarray.{name}') for core in CORES for name in MAKERS),
            (history_buffer_getattr, 'builtins.getattr'),
        ]
    )
