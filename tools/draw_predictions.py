"""Draw a detector's predictions on its config's test images, as one sheet.

python tools/draw_predictions.py CONFIG CHECKPOINT OUT.png
"""

import argparse
from pathlib import Path

import mmcv
import numpy as np
from mmdet.apis import inference_detector
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.registry import DATASETS
from skimage.util import montage
from torch.nn.functional import interpolate

from mmvit.checkpoints.trained import load_trained


def main() -> None:
    args = parse_args()
    config = Config.fromfile(args.config)
    model = load_trained(config, args.checkpoint)[0].to(args.device)
    dataset = DATASETS.build({**config.test_dataloader.dataset, '_scope_': 'mmdet'})
    visualizer = DetLocalVisualizer(line_width=1, alpha=0.4)
    visualizer.dataset_meta = {**dataset.metainfo, 'palette': 'random'}
    every = max(1, len(dataset) // args.count)
    paths = [dataset.get_data_info(i)['img_path'] for i in range(0, len(dataset), every)][: args.count]
    tiles = [draw(visualizer, path, inference_detector(model, path), args.tile, args.score) for path in paths]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    mmcv.imwrite(sheet(tiles)[..., ::-1], str(args.out))
    print(args.out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('out', type=Path)
    parser.add_argument('--count', type=int, default=12, help='images, spread over the set (default: %(default)s)')
    parser.add_argument('--tile', type=int, default=384, help='longer side of an image (default: %(default)s pixels)')
    parser.add_argument('--score', type=float, default=0.5, help='least score that is drawn (default: %(default)s)')
    parser.add_argument('--device', default='cpu')
    return parser.parse_args()


def draw(visualizer: DetLocalVisualizer, path: str, result: DetDataSample, side: int, score: float) -> np.ndarray:
    """An RGB image (H, W, 3) enlarged so that its longer side is ``side``, with its instances drawn."""
    image = mmcv.imread(path, channel_order='rgb')
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (round(height * factor), round(width * factor))
    instances = result.pred_instances
    instances.bboxes = instances.bboxes * factor
    if 'masks' in instances:
        instances.masks = interpolate(instances.masks[None].float(), size)[0].bool()
    image = mmcv.imresize(image, size[::-1], interpolation='bicubic')
    visualizer.add_datasample('', image, result, draw_gt=False, pred_score_thr=score)
    return visualizer.get_image()


def sheet(tiles: list[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) of any sizes side by side, four in a row, each padded to the largest."""
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    padded = [np.pad(t, ((0, height - t.shape[0]), (0, width - t.shape[1]), (0, 0))) for t in tiles]
    columns = min(4, len(tiles))
    grid = (-(-len(tiles) // columns), columns)
    return montage(padded, fill=(0, 0, 0), grid_shape=grid, padding_width=4, channel_axis=-1)


if __name__ == '__main__':
    main()
