"""Lets torch's safe loading read mmengine's own checkpoints.

Since torch 2.6, ``torch.load`` unpickles only what is on its allow-list. An mmengine checkpoint also holds the
message hub: ``HistoryBuffer`` objects, NumPy arrays and NumPy scalars. Their classes are added here, and nothing else.
"""

from pickle import UnpicklingError

import numpy as np
from mmengine.logging import HistoryBuffer
from numpy._core.multiarray import _reconstruct, scalar
from torch.serialization import add_safe_globals

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
            _reconstruct,
            scalar,
            # Pickles written by NumPy 1 name the same functions by their old place.
            (_reconstruct, 'numpy.core.multiarray._reconstruct'),
            (scalar, 'numpy.core.multiarray.scalar'),
            (history_buffer_getattr, 'builtins.getattr'),
        ]
    )
