"""Pickles that run code, and the formats that they come in."""

import pickle
from pathlib import Path
from typing import Any

import torch


class Asks:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def in_a_new_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def in_torchs_old_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def in_a_bare_pickle(content: Any, path: Path, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


def in_the_oldest_pickle(content: Any, path: Path) -> None:
    in_a_bare_pickle(content, path, protocol=0)


def in_the_newest_pickle(content: Any, path: Path) -> None:
    in_a_bare_pickle(content, path, protocol=5)


def run_by_torch(path: Path) -> None:
    torch.load(path, weights_only=False)


def run_by_pickle(path: Path) -> None:
    pickle.loads(path.read_bytes())


WRITERS = [  # and what runs their code
    (in_a_new_zip, run_by_torch),
    (in_torchs_old_format, run_by_torch),
    (in_a_bare_pickle, run_by_pickle),
    (in_the_oldest_pickle, run_by_pickle),
    (in_the_newest_pickle, run_by_pickle),
]
