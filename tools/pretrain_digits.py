"""Train a backbone as a classifier on the digits that stand in the images of tools/make_digits.py.

A small example of pretraining on one's own data, where official weights are not available. A detector loads the
backbone from the new file: ``init_cfg=dict(type='mmvit.OfficialWeights', checkpoint=OUT)``.

    python tools/pretrain_digits.py mmvit_mpvit_tiny data/digits work_dirs/pretrained.pth
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.runner import Runner
from skimage.io import imread
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import resized_crop

import mmvit  # noqa: F401  (registers its models with timm)

CONTEXT = (1.0, 1.8)  # side of a crop, in longer sides of the digit's box
SHIFT = 0.15  # largest of a crop's centre, in sides of the crop


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    net = timm.create_model(args.model, num_classes=10, drop_path_rate=0.05)
    runner = Runner(
        model=Classifier(net),
        work_dir=str(args.out.parent / args.out.stem),
        train_dataloader=DataLoader(Crops(args.data, 'train', args.side), args.batch, shuffle=True, drop_last=True),
        train_cfg=dict(by_epoch=True, max_epochs=args.epochs),
        val_dataloader=DataLoader(Crops(args.data, 'val', args.side), args.batch),
        val_cfg=dict(),
        val_evaluator=Evaluator(Accuracy()),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0, norm_type=2)
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
            dict(type='CosineAnnealingLR', convert_to_iter_based=True, T_max=args.epochs, eta_min=1e-5),
        ],
        default_hooks=dict(checkpoint=None),
        default_scope='mmengine',
        randomness=dict(seed=0),
    )
    runner.train()
    torch.save({'state_dict': net.state_dict()}, args.out)
    print(args.out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help="timm's name of it: mmvit_mpvit_tiny")
    parser.add_argument('data', type=Path, help='folder that tools/make_digits.py wrote')
    parser.add_argument('out', type=Path, help='file to write; the log goes into a folder beside it')
    parser.add_argument('--epochs', type=int, default=6, help='default: %(default)s')
    parser.add_argument('--batch', type=int, default=64, help='default: %(default)s')
    parser.add_argument('--side', type=int, default=64, help='of a crop, in pixels (default: %(default)s)')
    return parser.parse_args()


class Classifier(BaseModel):
    """A classifier of images (B, 3, H, W), RGB from 0 to 255, as mmengine's Runner takes it."""

    def __init__(self, net: Any) -> None:
        scale = [[255 * value for value in net.default_cfg[key]] for key in ('mean', 'std')]
        super().__init__(ImgDataPreprocessor(*scale))
        self.net = net

    def forward(self, inputs: Tensor, data_samples: Tensor, mode: str = 'tensor') -> Tensor | dict[str, Tensor]:
        """Logits (B, 10), or the loss against the labels (B,)."""
        logits = self.net(inputs)
        return dict(loss=F.cross_entropy(logits, data_samples)) if mode == 'loss' else logits


class Crops(Dataset):
    """The digits of one split, each cut out of its image: training with chance, held-out ones in the middle.

    Items: ``inputs``, RGB from 0 to 255 (3, side, side), and ``data_samples``, the label.
    """

    def __init__(self, data: Path, split: str, side: int) -> None:
        coco = json.loads((data / 'annotations' / f'instances_{split}.json').read_text())
        self.images = {i['id']: imread(data / split / i['file_name']) for i in coco['images']}
        self.digits = [(a['image_id'], a['bbox'], a['category_id']) for a in coco['annotations']]
        self.side = side
        self.by_chance = split == 'train'

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        image, (x, y, width, height), label = self.digits[index]
        context, *shift = torch.rand(3).tolist() if self.by_chance else [0.5] * 3
        side = max(width, height) * (CONTEXT[0] + context * (CONTEXT[1] - CONTEXT[0]))
        left = x + width / 2 + side * (SHIFT * (2 * shift[0] - 1) - 0.5)
        top = y + height / 2 + side * (SHIFT * (2 * shift[1] - 1) - 0.5)
        pixels = torch.from_numpy(np.moveaxis(self.images[image], -1, 0))
        box = [round(value) for value in (top, left, side, side)]
        return dict(inputs=resized_crop(pixels, *box, size=[self.side, self.side]), data_samples=label)


class Accuracy(BaseMetric):
    """The share of right answers."""

    def process(self, data_batch: dict, data_samples: list[Tensor]) -> None:
        self.results += [
            (logits.argmax() == label).item()
            for logits, label in zip(data_samples, data_batch['data_samples'], strict=True)
        ]

    def compute_metrics(self, results: list[bool]) -> dict[str, float]:
        return dict(accuracy=sum(results) / len(results))


if __name__ == '__main__':
    main()
