"""Ending a training of one or many processes with one sentence."""

from __future__ import annotations

from typing import NoReturn

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is true in any process; all of them must ask."""
    if get_world_size() == 1:
        return flag
    found = torch.tensor(float(flag))
    all_reduce(found, op='max')
    return bool(found)


def stop(sentence: str, status: int = 1) -> NoReturn:
    """End every process that calls this; the main one prints the sentence.

    Raises:
        SystemExit: Always.
    """
    if is_main_process():
        print(f'\n{sentence}', flush=True)
    raise SystemExit(status)
