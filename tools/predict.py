"""Predict with a trained detector or segmenter: images, folders, videos and addresses.

    python tools/predict.py configs/maskrcnn_mpvit_s.py epoch_12.pth photographs clip.mp4 --out predictions
    python tools/predict.py configs/maskrcnn_mpvit_s.py epoch_12.pth --sheet sheet.png

docs/predict.md says what is written. Without inputs it takes images of the config's test data.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from torchvision.utils import make_grid

from mmvit.commands import ending
from mmvit.deploy.runtime import IMAGES
from mmvit.predicting import Predictor
from mmvit.predicting.inputs import data_of_config, find_sources
from mmvit.predicting.results import write_image

TILE = 384  # pixels of the longer side of an image on a sheet


def main() -> None:
    args = parse_args()
    with ending():
        print(write(args))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('config')
    add('checkpoint', help='path or address of the trained model')
    add('inputs', nargs='*', help='images, folders of images, videos, or their addresses')
    add('--out', type=Path, help='folder of the results (default: predictions, without --sheet)')
    add('--sheet', type=Path, help='file for one picture of all images')
    add('--score', type=float, default=0.3, help='least score that is drawn (default: %(default)s)')
    add('--device', help='as PyTorch names it (default: cuda if there is one, else cpu)')
    add('--batch-size', type=int, default=1, help='images of one size at a time (default: %(default)s)')
    add('--count', type=int, default=12, help='images of the test data, without inputs (default: %(default)s)')
    return parser.parse_args()


def write(args: argparse.Namespace) -> Path | None:
    """Write all results. Returns what to look at."""
    out = args.out or (None if args.sheet else Path('predictions'))
    config = Config.fromfile(args.config)
    inputs = args.inputs or spread(config, args.count)
    sources = find_sources(inputs, out)
    if args.sheet and any(source.rate for source in sources):
        raise ValueError('a sheet shows images and no videos: leave --sheet out')
    if args.sheet and args.sheet.suffix.lower() not in IMAGES:
        raise ValueError(f'--sheet {args.sheet} is no name of an image ({", ".join(IMAGES)})')
    predictor = Predictor(config, args.checkpoint, args.device)
    samples = predictor.predict(inputs, out, args.score, args.batch_size)
    if args.sheet:
        tiles = [predictor.draw(mmcv.imread(s.img_path), s, args.score, TILE) for s in samples]
        write_image(args.sheet, sheet(tiles))
    for _ in samples:
        pass  # they are written
    return args.sheet or out


def spread(config: Config, count: int) -> list[str]:
    """Paths of images, spread over the config's test data."""
    dataset = data_of_config(config)
    if dataset is None:
        raise ValueError('the config has no test data here: name the images')
    if count < 1:
        raise ValueError(f'--count {count}: take at least one image')
    dataset.full_init()
    every = max(1, len(dataset) // count)
    return [dataset.get_data_info(index)['img_path'] for index in range(0, len(dataset), every)][:count]


def sheet(tiles: Iterable[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) of at most ``TILE`` a side, four in a row."""
    squares = [np.pad(t, ((0, TILE - t.shape[0]), (0, TILE - t.shape[1]), (0, 0))) for t in tiles]
    stacked = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    return make_grid(stacked, nrow=min(4, len(squares)), padding=4).permute(1, 2, 0).numpy()


if __name__ == '__main__':
    main()
