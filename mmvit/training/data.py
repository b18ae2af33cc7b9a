"""A running loop's data loader: what it was built with, and how to build it again."""

from __future__ import annotations

from typing import Any

from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader


def seed_of(loader: DataLoader) -> int | None:
    """The seed that mmengine built a data loader with, if it did."""
    return getattr(loader.worker_init_fn, 'keywords', {}).get('seed')


def rebuild_train_data(runner: Runner) -> None:
    """Build the training data loader again, with the runner's seed of now; ``restart_iterator`` is the next step."""
    loop: Any = runner.train_loop
    diff_rank_seed = getattr(runner, '_randomness_cfg', {}).get('diff_rank_seed', False)
    loop.dataloader = runner.build_dataloader(runner._train_dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed)


def restart_iterator(runner: Runner) -> None:
    """Let an iteration-based loop, which has started its workers already, start them again."""
    loop: Any = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop):
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
