"""Formula-made weights and images that goldens.json was recorded with (NumPy only, stable across versions)."""

import math
import re
import zlib

import numpy as np


def _shared_name(key: str) -> str:
    """One name for a tensor that the released MPViT and RegionViT layouts hold under several keys."""
    key = re.sub(r'MHCA_layers\.\d+\.(factoratt_crpe\.)?crpe\.', 'crpe.', key)
    key = re.sub(r'MHCA_layers\.\d+\.cpe\.', 'cpe.', key)
    return key.replace('.proj_cls.', '.proj.')


def weight(key: str, shape, seed: int) -> np.ndarray:
    """The float32 array for one key of a released layout."""
    shape = tuple(shape)
    if key.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    rng = np.random.RandomState(zlib.crc32(f'{seed}:{_shared_name(key)}'.encode()) & 0xFFFFFFFF)
    n = rng.standard_normal(int(np.prod(shape)) if shape else 1).astype(np.float32).reshape(shape)
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(n)
    if key.endswith(('running_mean', 'bias')):
        return 0.1 * n
    if key.endswith(('relative_pos', 'rel_pos')):
        return 0.5 * n
    if key.endswith('_pos'):
        return 0.1 * n
    is_norm2d = len(shape) == 4 and shape[0] == 1 and shape[2:] == (1, 1) and shape[1] > 1
    if len(shape) == 1 or is_norm2d:
        return 1 + 0.1 * n
    return n / np.float32(math.sqrt(int(np.prod(shape[1:]))))


def official_state_dict(layout: dict, seed: int) -> dict:
    """{key: array} for one layout of official_state_dicts.json."""
    return {key: weight(key, shape, seed) for key, shape in layout.items()}


def image(size, batch: int, seed: int) -> np.ndarray:
    """A (batch, 3, height, width) float32 image."""
    return np.random.RandomState(seed).standard_normal((batch, 3, *size)).astype(np.float32)


def sample(array: np.ndarray, count: int = 64) -> np.ndarray:
    """The entries of an array that goldens.json recorded."""
    flat = np.asarray(array).reshape(-1)
    return flat[np.random.RandomState(flat.size % 2**31).randint(0, flat.size, count)]
