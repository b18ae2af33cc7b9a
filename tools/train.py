"""Train from a config with mmengine's Runner: ``mim train mmvit CONFIG``, or ``torchrun`` on this file.

    torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch

Without a GPU the processes share the CPU and speak over gloo.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    try:
        runner.train()
    except json.JSONDecodeError as error:
        raise SystemExit('\n'.join(broken_annotations(config.to_dict())) or str(error)) from error


def broken_annotations(config: Any) -> Iterator[str]:
    """A sentence for each annotation file in a config, or in a part of it, that is not JSON all through."""
    if isinstance(config, dict):
        if isinstance(name := config.get('ann_file'), str) and name.endswith('.json'):
            path = Path(config.get('data_root') or '', name)
            try:
                json.loads(path.read_text())
            except json.JSONDecodeError as error:
                yield (
                    f'{path}, line {error.lineno}, column {error.colno}: {error.msg}. The annotation file is cut short '
                    f'or damaged: make it or fetch it again.'
                )
        config = config.values()
    elif not isinstance(config, list | tuple):
        return
    for part in config:
        yield from broken_annotations(part)


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
