"""Saves checkpoints that are whole or absent, and resumes from the newest one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import FlexibleRunner, Runner

from mmvit.environment import installed_versions
from mmvit.registry import HOOKS, register
from mmvit.training.files import PARTIAL, is_whole, newest_whole, put_in_place, remove, write_whole
from mmvit.training.launch import resuming_command
from mmvit.training.random_states import RandomStatesHook
from mmvit.training.stopping import anywhere, stop

INTERRUPTED = 'interrupted.pth'
MIB = 2**20


@register(HOOKS)
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, from whose files a training can always go on.

    - A checkpoint is written beside its place, flushed to the disk, and renamed. ``last_checkpoint`` names it after
      that, and what ``max_keep_ckpts`` or a new best one makes superfluous is removed last. While it saves, the disk
      holds one file more than is kept.
    - Where a save fails, or weights are not finite, the training stops and what was saved before stays.
    - ``--resume`` takes the newest whole checkpoint, whatever ``last_checkpoint`` says, and warns where there is none.
    - A checkpoint names the versions of the packages that trained it, in ``meta['versions']``.

    With FSDP (``FlexibleRunner``) checkpoints are saved in the same way, as one file or as a folder of one file a
    process. That runner loads before any hook is called, so it still takes what ``last_checkpoint`` says. Checkpoints
    on a remote ``out_dir`` are saved as mmengine does, for those storages put whole objects in place themselves.

    The arguments are those of ``CheckpointHook``.
    """

    file_backend: Any

    def before_run(self, runner: Runner) -> None:
        self.warning = ''
        if runner._resume and runner._load_from is None and not runner._has_loaded and self._is_local(runner):
            self._find(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta']['versions'] = installed_versions()

    def _is_local(self, runner: Runner) -> bool:
        return isinstance(
            get_file_backend(self.out_dir or runner.work_dir, backend_args=self.backend_args), LocalBackend
        )

    def _find(self, runner: Runner) -> None:
        """Let the runner load the newest whole checkpoint, or nothing."""
        answer: list[Any] = [self._look(runner) if is_main_process() else None]
        broadcast_object_list(answer)
        runner._load_from, self.warning = answer[0]
        runner._resume = runner._load_from is not None and not isinstance(runner, FlexibleRunner)
        if runner._resume and self.warning:
            runner.logger.warning(self.warning)

    def _look(self, runner: Runner) -> tuple[str | None, str]:
        """The newest whole checkpoint, and what the user should know about it."""
        folder = self._folder(runner)
        path, broken = newest_whole(folder, [self.filename_tmpl.format('*'), INTERRUPTED])
        named = named_last(Path(runner.work_dir))
        broken_ones = f' Not whole: {", ".join(map(str, broken))}.' if broken else ''
        if path is None:
            return None, f'--resume found no whole checkpoint in {folder}: TRAINING BEGINS ANEW.{broken_ones}'
        if named is None or named.resolve() != path.resolve():
            what = 'is missing' if named is None else f'names {named}, which {state_of(named)}'
            return str(path), f'last_checkpoint {what}. Going on from {path}, the newest whole one.{broken_ones}'
        return str(path), ''

    def _folder(self, runner: Runner) -> Path:
        """Where checkpoints are, as mmengine chooses it."""
        work_dir = Path(runner.work_dir)
        return work_dir if self.out_dir is None else Path(self.out_dir) / work_dir.name

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.is_local = isinstance(self.file_backend, LocalBackend)
        if self.is_local and is_main_process():
            for leftover in Path(self.out_dir).glob(f'*{PARTIAL}'):
                remove(leftover)
        if self.warning and not runner._has_loaded:
            frame = '!' * 100
            runner.logger.warning(f'\n{frame}\n{self.warning}\n{frame}')

    def save_interrupted(self, runner: Runner, batches_done: int) -> str:
        """Save inside an epoch, after so many batches of it; the file's path. The next regular save removes it."""
        meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
        self._save(runner, INTERRUPTED, meta, by_epoch=False, batches_done=batches_done)
        return str(self.last_ckpt)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        superfluous = [INTERRUPTED, *map(self.filename_tmpl.format, self._superfluous(runner, step))]
        self._save(runner, self.filename_tmpl.format(step), meta, self.by_epoch)
        if is_main_process():
            for name in superfluous:
                self._remove(self.file_backend.join_path(self.out_dir, name))

    def _superfluous(self, runner: Any, step: int) -> list[int]:
        """Note a step among those that are kept; those that are not any more."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        is_full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        oldest = [self.keep_ckpt_ids.popleft()] if is_full else []
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return oldest

    def _save(self, runner: Any, filename: str, meta: dict, by_epoch: bool, batches_done: int = 0) -> None:
        """Save what can be resumed from, and let ``last_checkpoint`` name it."""
        self._refuse_broken_weights(runner)
        for hook in runner.hooks:
            if isinstance(hook, RandomStatesHook):
                hook.collect(batches_done)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        WholeSaves(runner, self).save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_whole(Path(runner.work_dir) / 'last_checkpoint', str(self.last_ckpt))

    def _refuse_broken_weights(self, runner: Any) -> None:
        finite = [p.detach().isfinite().all() for p in runner.model.parameters()]
        if anywhere(not torch.stack(finite).all()):
            stop(
                f'Training stopped at iteration {runner.iter + 1}: the weights are not finite, and are not saved. '
                'Lower the learning rate or clip gradients, and go on with --resume.'
            )

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As mmengine's, which removes the old best one first: here it is removed last."""
        backend, self.file_backend = self.file_backend, LaterRemovals(self.file_backend)
        try:
            super()._save_best_checkpoint(WholeSaves(runner, self), metrics)
            superfluous = self.file_backend.superfluous
        finally:
            self.file_backend = backend
        best = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        for path in superfluous:
            if path not in best:
                self._remove(path)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)


class WholeSaves:
    """A runner whose ``save_checkpoint`` puts a whole file in place, or stops the training."""

    def __init__(self, runner: Any, hook: AtomicCheckpointHook) -> None:
        self._runner: Any = runner._runner if isinstance(runner, WholeSaves) else runner
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **options: Any) -> None:
        """As the runner's."""
        if not self._hook.is_local:
            self._runner.save_checkpoint(out_dir, filename, *args, **options)
            return
        path = Path(out_dir, filename)
        partial = path.with_name(filename + PARTIAL)
        error = None
        try:
            self._runner.save_checkpoint(out_dir, partial.name, *args, **options)
        except OSError as caught:
            error = caught
        if not anywhere(error is not None):  # all processes have written
            error = place(partial, path)
        if anywhere(error is not None):
            self._give_up(partial, path, error)

    def _give_up(self, partial: Path, path: Path, error: OSError | None) -> None:
        sentence = ''
        if is_main_process():
            remove(partial)
            sentence = failure(path, error, expected_size(self._runner, path.parent), named_last(self._runner.work_dir))
        stop(sentence)


class LaterRemovals:
    """A file backend that notes what it is to remove."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.superfluous: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Note it."""
        self.superfluous.append(path)

    rmtree = remove


def place(partial: Path, path: Path) -> OSError | None:
    """In the main process, give what was written its name; what went wrong, if something did."""
    try:
        if is_main_process():
            put_in_place(partial, path)
    except OSError as error:
        return error
    return None


def named_last(work_dir: str | Path) -> Path | None:
    """What ``last_checkpoint`` names, if it is there and names something."""
    try:
        name = Path(work_dir, 'last_checkpoint').read_text(errors='replace').strip('\0\n ')
    except OSError:
        return None
    return Path(name) if name else None


def state_of(path: Path) -> str:
    """What is the matter with a checkpoint that is not the newest whole one."""
    if not path.exists():
        return 'is gone'
    return 'is older' if is_whole(path) else 'is not whole'


def expected_size(runner: Runner, folder: Path) -> int:
    """Bytes of a checkpoint: of the newest in a folder or, if there is none, at least of the model's parameters."""
    sizes = [path.stat() for path in folder.glob('*.pth') if path.is_file()]
    if sizes:
        return max(sizes, key=lambda found: found.st_mtime_ns).st_size
    return sum(p.numel() * p.element_size() for p in runner.model.parameters())


def failure(path: Path, error: OSError | None, size: int, last: Path | None) -> str:
    """Why a checkpoint was not saved, and what to do."""
    reason = error.strerror if error is not None else 'another process says why'
    free = shutil.disk_usage(path.parent).free
    missing = max(size - free, 0)
    room = f'it needs about {size / MIB:.1f} MiB, {free / MIB:.1f} MiB are free' + (
        f', {missing / MIB:.1f} MiB are missing' if missing else ''
    )
    kept = f'{last} is whole' if last is not None else 'No checkpoint was saved before'
    return (
        f'Training stopped: {path} could not be saved ({reason}; {room}). {kept}. Make room and go on with:\n'
        f'  {resuming_command()}'
    )
