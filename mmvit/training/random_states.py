"""Saves and restores all that random numbers come from, so that a resumed training equals an uninterrupted one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch.utils.data import IterableDataset, get_worker_info

from mmvit.registry import HOOKS, register
from mmvit.training.data import rebuild_train_data, restart_iterator, seed_of

KEY = 'resuming'  # in a checkpoint


@register(HOOKS)
class RandomStatesHook(Hook):
    """Keep the random states of Python, NumPy and torch (CPU and CUDA) of each process in the checkpoint.

    ``AtomicCheckpointHook`` asks for them. Beside that:

    - Validation leaves the training's states alone. A resumed training does not repeat it.
    - Workers of an epoch-based loop are seeded anew for each epoch. mmengine seeds them once, when they start.
    - A config without a seed gets on resume the order of data that the first run drew.

    Both loops of mmengine find their place by loading what was trained on, without training on it: the iteration-based
    one always, the epoch-based one after an interruption inside an epoch. Gradients that were accumulated and not yet
    applied (``accumulative_counts``) are not in a checkpoint.
    """

    priority = 'LOWEST'  # nothing draws numbers between this hook and the loop

    def __init__(self) -> None:
        self.gathered: list[dict] = []
        self.batches_done = 0
        self.resumed: dict | None = None
        self.of_training: dict | None = None
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def collect(self, batches_done: int) -> None:
        """Gather the states of all processes for the next checkpoint, taken after some batches of an epoch."""
        self.gathered = all_gather_object(self.of_training or random_states())
        self.batches_done = batches_done

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if 'optimizer' in checkpoint:  # it can be resumed from
            checkpoint[KEY] = dict(random_states=self.gathered, batches_done=self.batches_done)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.resumed = checkpoint.pop(KEY, None) if runner._resume else None

    def before_train(self, runner: Runner) -> None:
        if seed_of(runner.train_loop.dataloader) not in (None, runner.seed):
            rebuild_train_data(runner)
            restart_iterator(runner)
        loader: Any = runner.train_loop.dataloader
        # Starting workers draws a number, which a run with persistent workers does once and a resumed one again.
        loader.generator = torch.Generator().manual_seed(runner.seed + get_rank())
        is_seeded = loader.num_workers > 0 and not isinstance(loader.dataset, IterableDataset)
        if is_seeded and not isinstance(runner.train_loop, IterBasedTrainLoop):
            loader.dataset.__getitems__ = SeededByEpoch(loader.dataset, runner.seed, self.epoch)

    def before_train_epoch(self, runner: Runner) -> None:
        self.epoch.fill_(runner.epoch)
        if self.resumed is not None:
            self._go_on(runner, **self.resumed)
            self.resumed = None

    def _go_on(self, runner: Runner, random_states: Sequence[dict], batches_done: int) -> None:
        if len(random_states) != get_world_size():
            runner.logger.warning(
                f'The checkpoint is from {len(random_states)} processes, not {get_world_size()}: this epoch begins '
                'anew, with other random numbers.'
            )
            return
        loop: Any = runner.train_loop
        restore = partial(set_random_states, random_states[get_rank()])
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = calling_after(runner.iter, loop.dataloader_iterator, restore)
        elif batches_done:
            skip_batches(loop, batches_done, restore)
        else:
            restore()

    def after_train_epoch(self, runner: Runner) -> None:
        vars(runner.train_loop).pop('run_iter', None)  # what skip_batches put there

    def before_val(self, runner: Runner) -> None:
        self.of_training = random_states()

    def after_val(self, runner: Runner) -> None:
        if self.of_training is not None:
            set_random_states(self.of_training)
            self.of_training = None


def random_states() -> dict[str, Any]:
    """The states of Python, NumPy and torch, in types that ``torch.load(weights_only=True)`` reads."""
    version, words, gauss = random.getstate()
    generator, keys, *rest = np.random.get_state()
    return dict(
        python=[version, list(words), gauss],
        numpy=[generator, [int(key) for key in keys], *rest],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    )


def set_random_states(states: dict[str, Any]) -> None:
    """Set what ``random_states`` returned (its tensors may have been loaded to a GPU)."""
    version, words, gauss = states['python']
    random.setstate((version, tuple(words), gauss))
    generator, keys, *rest = states['numpy']
    np.random.set_state((generator, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    if states['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


def calling_after(count: int, batches: Iterator[Any], call: Callable[[], None]) -> Iterator[Any]:
    """The batches; ``call`` is called before the one after the first ``count`` is loaded."""
    for _ in range(count):
        yield next(batches)
    call()
    yield from batches


def skip_batches(loop: BaseLoop, count: int, call: Callable[[], None]) -> None:
    """Let an epoch-based loop train on nothing for ``count`` batches, then ``call``, then go on."""
    train: Any = loop.run_iter

    def run_iter(idx: int, data_batch: Any) -> None:
        if idx >= count:
            train(idx, data_batch)
        elif idx == count - 1:
            call()

    loop.run_iter = run_iter


class SeededByEpoch:
    """A data set's ``__getitems__``, by which torch loads a batch: seeds a worker at the first one of an epoch."""

    def __init__(self, dataset: Any, seed: int, epoch: torch.Tensor) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch
        self.seeded_for = -1
        self.get_items = getattr(type(dataset), '__getitems__', None)

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        worker, epoch = get_worker_info(), int(self.epoch)
        if worker is not None and self.seeded_for != epoch:
            seed_everything(self.seed, get_rank(), worker.id, epoch)
            self.seeded_for = epoch
        if self.get_items is not None:
            return self.get_items(self.dataset, indices)
        return [self.dataset[index] for index in indices]


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and torch from a few numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
