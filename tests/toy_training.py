"""A training of a second, with all that a resumed one must restore, in one process or several."""

import json
import multiprocessing
import os
import random
import resource
import socket
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.registry import HOOKS as ALL_HOOKS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.utils.data import Dataset

import mmvit.training  # noqa: F401  (registers its hooks)

HOOKS = dict(
    checkpoint=dict(type='mmvit.AtomicCheckpointHook'),
    finite_loss=dict(type='mmvit.FiniteLossHook'),
    random_states=dict(type='mmvit.RandomStatesHook'),
    interrupt=dict(type='mmvit.InterruptHook'),
    check_setup=dict(type='mmvit.CheckSetupHook'),
)


# FSDP of two processes on a CPU. There PyTorch 2.13 dies where weights are gathered in one process alone, as the recipe
# for GPUs lets it (``state_dict_cfg='full'``).
EVERYWHERE = dict(rank0_only=False, offload_to_cpu=False)
SHARDED = dict(
    env_cfg=dict(dist_cfg=dict(backend='gloo')),
    strategy=dict(
        type='mmvit.ResumableFSDPStrategy',
        model_wrapper=dict(type='MMFullyShardedDataParallel', device_id=torch.device('cpu')),
        state_dict_cfg=dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', **EVERYWHERE),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', **EVERYWHERE),
        ),
    ),
)


@DATASETS.register_module()
class Augmented(Dataset):
    """Vectors that Python, NumPy and torch change at random."""

    def __init__(self, count):
        self.vectors = torch.randn(count, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.vectors)

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(1)
        return dict(inputs=self.vectors[index] + noise, index=torch.tensor(index))


@MODELS.register_module()
class Toy(BaseModel):
    """A net with dropout and batch statistics; ``ballast`` makes its checkpoints as large as one likes (MiB).

    In the last process a loss of the ``spoilt``-th iteration is not finite.
    """

    def __init__(self, ballast=0, spoilt=None):
        super().__init__()
        self.iteration, self.spoilt = 0, spoilt
        self.net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 1))
        self.ballast = nn.Parameter(torch.zeros(ballast * 2**18), requires_grad=False)

    def forward(self, inputs, index=None, mode='loss'):
        out = self.net(torch.stack(list(inputs)))
        if mode != 'loss':
            return [out]
        self.iteration += 1
        is_last = os.environ.get('RANK', '0') == str(int(os.environ.get('WORLD_SIZE', '1')) - 1)
        factor = float('nan') if is_last and self.iteration == self.spoilt else 1.0
        return dict(loss_square=out.square().mean(), loss_mean=out.mean().abs() * factor)


@METRICS.register_module()
class Metric:
    """Says that each validation is better than the last, and draws numbers."""

    def process(self, *_, **__):
        random.random()

    def evaluate(self, *_):
        np.random.rand(), torch.rand(1)
        return dict(acc=time.time())


@ALL_HOOKS.register_module()
class Note(Hook):
    """Writes iteration and loss of each process to a file, waits, and spoils weights after an iteration."""

    priority = 'VERY_HIGH'

    def __init__(self, pause=0.0, spoilt=None):
        self.pause, self.spoilt = pause, spoilt

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 0:
            print('training', flush=True)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        time.sleep(self.pause)
        if runner.iter + 1 == self.spoilt:
            list(runner.model.parameters())[-1].data.fill_(float('nan'))
        rank = os.environ.get('RANK', '0')
        seen = [int(index) for index in data_batch['index']]
        line = dict(iter=runner.iter + 1, loss=float(outputs['loss']), seen=seen)
        with open(Path(runner.work_dir, f'losses_{rank}.jsonl'), 'a') as file:
            file.write(json.dumps(line) + '\n')


def settings(
    work_dir,
    loop='epoch',
    epochs=4,
    workers=0,
    seed=0,
    pause=0.0,
    ballast=0,
    keep=1,
    spoilt=None,
    spoilt_weights=None,
    hooks=HOOKS,
    **changes,
):
    """A config: four iterations an epoch, or as many in one."""
    by_epoch = loop == 'epoch'
    loader = dict(
        batch_size=4,
        num_workers=workers,
        persistent_workers=workers > 0,
        dataset=dict(type='Augmented', count=16 * int(os.environ.get('WORLD_SIZE', '1'))),
        collate_fn=dict(type='default_collate'),
    )
    shuffled = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    saving = dict(
        by_epoch=by_epoch, interval=1 if by_epoch else 4, max_keep_ckpts=keep, save_best='acc', rule='greater'
    )
    config = dict(
        model=dict(type='Toy', ballast=ballast, spoilt=spoilt),
        work_dir=str(work_dir),
        train_dataloader=dict(loader, sampler=shuffled),
        val_dataloader=dict(
            loader, sampler=dict(type='DefaultSampler', shuffle=False), num_workers=0, persistent_workers=False
        ),
        val_cfg=dict(),
        val_evaluator=dict(type='Metric'),
        train_cfg=dict(by_epoch=True, max_epochs=epochs)
        if by_epoch
        else dict(by_epoch=False, max_iters=4 * epochs, val_interval=4),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False, T_max=4 * epochs),
        default_hooks=dict(hooks, checkpoint=dict(hooks['checkpoint'], **saving)),
        custom_hooks=[dict(type='EMAHook', momentum=0.1), dict(type='Note', pause=pause, spoilt=spoilt_weights)],
        randomness=dict(seed=seed),
        default_scope='mmengine',
        experiment_name=f'{work_dir}-{time.time_ns()}',
        log_level='WARNING',
    )
    return dict(config, **changes)


def weights(work_dir):
    """All tensors of a finished training: weights, averages, the optimizer's."""
    saved = torch.load((Path(work_dir) / 'last_checkpoint').read_text(), weights_only=True)
    moments = {f'{i}.{k}': v for i, state in saved['optimizer']['state'].items() for k, v in state.items()}
    averages = {f'ema.{k}': v for k, v in saved.get('ema_state_dict', {}).items()}
    return {**saved['state_dict'], **averages, **moments}


def losses(work_dir, rank=0):
    """The last line that was written for each iteration."""
    lines = map(json.loads, Path(work_dir, f'losses_{rank}.jsonl').read_text().splitlines())
    return {line['iter']: line for line in lines}


def train(work_dir, environment, output, largest_file=None, sharded=False, **options):
    """Train in this process, which is one of those that ``environment`` speaks of and writes no larger file."""
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    random.seed(), np.random.seed()  # every process forked from the server would draw the same seed
    torch.set_num_threads(1)
    if environment:
        dist.init_process_group('gloo')
        options.update(launcher='pytorch', model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None))
    config = settings(work_dir, **options)
    if sharded:
        config.update(SHARDED, custom_hooks=[hook for hook in config['custom_hooks'] if hook['type'] != 'EMAHook'])
    (FlexibleRunner if sharded else Runner).from_cfg(Config(config)).train()


def start(work_dir, processes=1, **options):
    """Start a training in processes that have imported everything already; what they print is in ``output.txt``."""
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    port = str(free_port())
    shared = dict(WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    started = []
    for rank in range(processes):
        environment = dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)) if processes > 1 else {}
        arguments = (str(work_dir), environment, str(Path(work_dir, 'output.txt')))
        started.append(server().Process(target=train, args=arguments, kwargs=options))
        started[-1].start()
    return started


@cache
def server():
    """Forks processes from one that has imported this module and done nothing else."""
    folders = map(str, (Path(__file__).parent, Path(__file__).parents[1]))
    os.environ['PYTHONPATH'] = os.pathsep.join([*folders, os.environ.get('PYTHONPATH', '')])  # the server looks there
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['toy_training'])
    return context


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def finish(processes, timeout=120):
    """Exit codes of processes; those that hang are killed."""
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]
