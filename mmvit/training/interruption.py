"""Ends a training on SIGTERM or Ctrl-C: after the running iteration, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmvit.registry import HOOKS, register
from mmvit.training.checkpoints import AtomicCheckpointHook
from mmvit.training.data import rebuild_train_data, restart_iterator
from mmvit.training.launch import is_running, mim_process, resuming_command
from mmvit.training.stopping import anywhere, stop

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGAIN = 1.0  # seconds; a terminal and torchrun send the same Ctrl-C twice


@register(HOOKS)
class InterruptHook(Hook):
    """On SIGTERM or Ctrl-C, in any process of a training, end all of them with a checkpoint.

    The running iteration is finished, ``interrupted.pth`` is saved, the command that goes on is printed, and the exit
    status is 143 or 130. During validation that waits for the iteration after it: what was trained has been saved. A
    second Ctrl-C ends at once.

    A training that mim started ends in the same way when mim is gone (on Linux). mim itself kills its training a
    quarter of a second after Ctrl-C; ``tools/train.py`` has no such process above it.

    Needs ``AtomicCheckpointHook``.
    """

    priority = 'LOWEST'  # the iteration is over, and saved where it was to be

    def __init__(self) -> None:
        self.asked: int | None = None
        self.asked_at = 0.0
        self.before: dict[int, Any] = {}
        self.mim: int | None = None

    def before_train(self, runner: Runner) -> None:
        self.saving = saving_hook(runner)
        self.asked, self.mim = None, mim_process()
        self.command = resuming_command()  # mim may be gone when it is printed
        shield_workers(runner)
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        is_again = self.asked is not None and time.monotonic() - self.asked_at > AGAIN
        if is_again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is not None:
            return
        self.asked, self.asked_at = number, time.monotonic()
        if is_main_process():
            text = 'Training ends after this iteration, with a checkpoint. Ctrl-C ends it at once, without.'
            os.write(2, f'\n{signal.Signals(number).name}: {text}\n'.encode())  # print is not safe in a handler

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.mim is not None and not is_running(self.mim):
            self.asked = signal.SIGTERM
        if anywhere(self.asked is not None) and not self.is_last_train_iter(runner):
            self._end(runner, batch_idx + 1)

    def _end(self, runner: Runner, batches_done: int) -> None:
        path = self.saving.save_interrupted(runner, batches_done)
        self._give_signals_back()
        number = self.asked or signal.SIGTERM
        stop(
            f'Training ended by {signal.Signals(number).name} after iteration {runner.iter + 1}, saved in {path}. '
            f'Go on with:\n  {self.command}',
            status=128 + number,
        )

    def after_train(self, runner: Runner) -> None:
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


def saving_hook(runner: Runner) -> AtomicCheckpointHook:
    """The runner's hook that saves.

    Raises:
        TypeError: It is another one.
    """
    for hook in runner.hooks:
        if isinstance(hook, AtomicCheckpointHook):
            return hook
    raise TypeError(
        "InterruptHook saves with AtomicCheckpointHook: write default_hooks = dict(checkpoint=dict(type='mmvit."
        "AtomicCheckpointHook')) in the config"
    )


def shield_workers(runner: Any) -> None:
    """Let the processes that load data leave signals to the one that trains, and end when it does."""
    is_at_work = isinstance(runner.train_loop, IterBasedTrainLoop) and runner.train_loop.dataloader.num_workers > 0
    if is_at_work:
        rebuild_train_data(runner)
    for loop in filter(None, (runner.train_loop, runner.val_loop)):
        loop.dataloader.worker_init_fn = partial(leave_signals, loop.dataloader.worker_init_fn)
    if is_at_work:
        restart_iterator(runner)


def leave_signals(start: Callable[[int], None] | None, worker: int) -> None:
    """What a worker does first, before what it would have done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_with_parent, daemon=True).start()
    if start is not None:
        start(worker)


def end_with_parent() -> None:
    """End when the parent process sends SIGTERM; a scheduler sends one to all processes, and the parent answers it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
