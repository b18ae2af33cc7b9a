"""Pretrain a backbone on images without labels, with lightly-train.

    python tools/pretrain.py photographs --model mmvit_mpvit_small --out work_dirs/pretrained

What a detector begins with (``--weights`` of new_project) is ``exported_models/exported_last.pt`` in ``--out``. The
images are normalised as the model asks. lightly-train is under AGPL-3.0 and comes with the extra ``mmvit[pretrain]``.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import timm

import mmvit  # noqa: F401  (registers its models with timm, where lightly-train finds them)
from mmvit.commands import ending
from mmvit.deploy.runtime import IMAGES

MISSING = "it needs lightly-train, which is under AGPL-3.0: pip install 'mmvit[pretrain]'"
LAST = Path('checkpoints', 'last.ckpt')
EXPORTED = Path('exported_models', 'exported_last.pt')


def main() -> None:
    args = parse_args()
    with ending():
        check(args)
        print(f'to begin with: --weights {pretrain(args)}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('images', type=Path, help='folder of images, and folders in it')
    add('--model', default='mmvit_mpvit_small', help="timm's name of it (default: %(default)s)")
    add('--out', type=Path, required=True, help='folder of the run')
    add('--method', default='simclr', help="one of lightly-train's (default: %(default)s)")
    add('--epochs', type=int, help='default: as many as lightly-train finds fit')
    add('--batch-size', type=int, default=128, help='over all devices (default: %(default)s)')
    add('--size', type=int, default=224, help='side of a view, in pixels (default: %(default)s)')
    add('--no-flip', action='store_true', help='for classes that a mirror changes, such as digits')
    add('--resume', action='store_true', help='go on with the run in --out')
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Raises an error with what to mend, before lightly-train loads."""
    if not args.images.is_dir():
        raise ValueError(f'{args.images} is no folder')
    if not any(path.suffix.lower() in IMAGES for path in args.images.rglob('*')):
        raise ValueError(f'{args.images} has no images ({", ".join(IMAGES)})')
    if args.model not in (models := timm.list_models('mmvit_*')):
        raise ValueError(f'--model {args.model}: take one of {", ".join(models)}')
    if args.epochs == 0:
        raise ValueError('--epochs 0 would leave the weights random: take at least one')
    if args.resume and not (args.out / LAST).is_file():
        raise ValueError(f'{args.out / LAST} is missing, so there is nothing to go on with: leave --resume out')
    if not args.resume and args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f'--out {args.out} is not empty: name another folder, or go on with its run by --resume')


def pretrain(args: argparse.Namespace) -> Path:
    """Run lightly-train. Returns the file of weights, which timm's model of that name loads, too."""
    os.environ.setdefault('LIGHTLY_TRAIN_EVENTS_DISABLED', '1')  # or it reports each run to its makers
    try:
        import lightly_train  # noqa: PLC0415  only here
    except ImportError as error:
        raise ImportError(f'{MISSING} ({error})') from None
    if args.method not in (methods := lightly_train.list_methods()):
        raise ValueError(f'--method {args.method}: take one of {", ".join(methods)}')
    try:
        lightly_train.pretrain(
            out=args.out,
            data=args.images,
            model=f'timm/{args.model}',
            method=args.method,
            epochs='auto' if args.epochs is None else args.epochs,
            batch_size=args.batch_size,
            transform_args=views(args.model, args.size, not args.no_flip),
            resume_interrupted=args.resume,
        )
    except SystemExit:  # of PyTorch Lightning, after Ctrl-C
        raise KeyboardInterrupt(f'stopped: {how_to_go_on(args.out)}') from None
    return args.out / EXPORTED


def views(model: str, size: int, flip: bool) -> dict[str, Any]:
    """lightly-train's ``transform_args``: square views with the model's own mean and std, of RGB from 0 to 1."""
    return {
        'image_size': (size, size),
        'normalize': {key: timm.models.get_pretrained_cfg_value(model, key) for key in ('mean', 'std')},
        **({} if flip else {'random_flip': None}),
    }


def how_to_go_on(out: Path) -> str:
    if (out / LAST).is_file():
        return 'the same command with --resume goes on after the last whole epoch'
    return f'no epoch was over, so delete {out} and begin anew'


if __name__ == '__main__':
    main()
