"""Train from a config with mmengine's Runner: ``mim train mmvit CONFIG``, or ``torchrun`` on this file.

    torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch

Without a GPU the processes share the CPU and speak over gloo.
"""

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner


def main() -> None:
    args = parse_args()
    # mmengine's launchers read the rank from the environment; torch.distributed.launch passes it as a flag.
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
    if args.auto_scale_lr:
        config.auto_scale_lr.enable = True
    if args.resume:
        config.resume = True
        config.load_from = None if args.resume == 'auto' else args.resume
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        # mmengine's own start gives each process a GPU.
        torch.distributed.init_process_group('gloo')
        config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    runner: Runner | FlexibleRunner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    runner.train()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--resume', nargs='?', const='auto', help='go on from this checkpoint, or from the last one in the work dir'
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the rate to the real batch size')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='settings of the config, as key=value')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


if __name__ == '__main__':
    main()
