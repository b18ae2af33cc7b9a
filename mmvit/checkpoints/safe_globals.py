"""Permission for torch's safe loading to read the checkpoints of mmengine.

Since PyTorch 2.6, ``torch.load`` unpickles only what is on its allow-list. A checkpoint of mmengine also contains the
message hub: ``HistoryBuffer`` objects, NumPy arrays and NumPy scalars. This module adds their classes, nothing else.
"""

from pickle import UnpicklingError

import numpy as np
from mmengine.logging import HistoryBuffer

from mmvit.compat import add_safe_globals, multiarray

CORES = ('core', '_core')
MAKERS = ('_reconstruct', 'scalar')
HISTORY_STATISTICS = ('min', 'max', 'mean', 'current')


def history_buffer_getattr(owner, name):
    """``builtins.getattr``, limited to the statistics of HistoryBuffer that a checkpoint refers to.

    Raises:
        UnpicklingError: For any other attribute or owner.
    """
    if owner is HistoryBuffer and name in HISTORY_STATISTICS:
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(f'refused: this file asks for the attribute {name!r} of {owner!r} while it is being loaded')


def allow_mmengine_checkpoints() -> None:
    """Add what mmengine stores in a checkpoint to torch's allow-list. Repeated calls do no harm."""
    add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            np.dtypes.Float32DType,  # mmseg's best score
            np.dtypes.Float64DType,
            np.dtypes.Int64DType,
            # Their names in a pickle depend on the version of NumPy, 1 or 2, that wrote it.
            *((getattr(multiarray, name), f'numpy.{core}.multiarray.{name}') for core in CORES for name in MAKERS),
            (history_buffer_getattr, 'builtins.getattr'),
        ]
    )
