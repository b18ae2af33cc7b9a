"""Draw what a backbone sees in a photograph: the feature maps of its stages, and its attention.

    python tools/look.py photograph.jpg --config configs/maskrcnn_mpvit_s.py --checkpoint epoch_12.pth --out pictures
    python tools/look.py photograph.jpg --backbone regionvit_s --checkpoint RegionViT-S.pth --stage 2 --at 120,80

docs/look.md tells how to read the pictures.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.visualization import Visualizer
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from mmvit.checkpoints.trained import build_model, load_trained, mean_and_std
from mmvit.looking import View, look, over_image, stage_maps
from mmvit.models.base import Backbone
from mmvit.models.families import FAMILIES

TILE = 400  # pixels of a panel's longer side, at least
DPI = 150
ALPHA = 0.6  # of a map over the photograph
LETTERS = dict(tiny='t', xsmall='xs', small='s', medium='m', base='b')
BACKBONES = {
    f'{family.family_name}_{name}': (family, arch)
    for family in FAMILIES
    for arch in family.arch_zoo
    for name in {arch, LETTERS.get(arch, arch)}
}


def main() -> None:
    args = parse_args()
    try:
        draw_all(args)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        sys.exit(f'nothing drawn: {error}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('image', type=Path, help='the photograph')
    add('--backbone', default='mpvit_s', help='as in the names of the configs (default: %(default)s)')
    add('--config', help="a detector's or segmenter's, instead of --backbone")
    add('--checkpoint', help='path or address of the weights: of the model, or of the backbone or a classifier')
    add('--stage', type=int, default=1, help='whose attention is drawn, from 0 (default: %(default)s)')
    add('--at', type=parse_position, metavar='X,Y', help='pixel of the photograph that looks (default: its middle)')
    add('--longest', type=int, default=640, help='a larger photograph is shrunk to it (default: %(default)s pixels)')
    add('--out', type=Path, default=Path('look'), help='folder of the pictures (default: %(default)s)')
    return parser.parse_args()


def parse_position(text: str) -> tuple[int, int]:
    """Column and row."""
    parts = text.split(',')
    if len(parts) != 2 or not all(part.strip().lstrip('-').isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f'{text} is not X,Y in pixels')
    return int(parts[0]), int(parts[1])


def draw_all(args: argparse.Namespace) -> None:
    """Draw and print the pictures. Raises ValueError before the first file if that cannot be done."""
    photo, at = read_photo(args.image, args.at, args.longest)
    backbone, normalise = load(args)
    image = normalise(photo)
    views = look(backbone, image, args.stage, at)
    maps = stage_maps(backbone, image)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.checkpoint is None:
        print('The weights are random: give --checkpoint to see what a trained network sees.')
    for name, figure in (
        ('stages', draw_stages(photo, maps, backbone)),
        (backbone.family_name, draw_views(photo, views, at)),
    ):
        path = args.out / f'{name}.png'
        figure.savefig(path, dpi=DPI)
        print(path)


def read_photo(path: Path, at: tuple[int, int] | None, longest: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An RGB image (H, W, 3), shrunk to ``longest``, and the position in it; the middle if none is given.

    Raises:
        ValueError: It cannot be read to its end, or the position is outside.
    """
    try:
        photo = ImageOps.exif_transpose(Image.open(path)).convert('RGB')  # as mmcv loads it
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f'{path} is not an image: {error}') from None
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f'there is no image {path}') from None
        raise ValueError(f'{path} cannot be read to its end: {error}') from None
    x, y = at or (photo.width // 2, photo.height // 2)
    if x not in range(photo.width) or y not in range(photo.height):
        raise ValueError(f'the position {x},{y} is outside of the image of {photo.width}x{photo.height} pixels')
    factor = min(1, longest / max(photo.size))
    small = photo.resize((round(photo.width * factor), round(photo.height * factor))) if factor < 1 else photo
    return np.asarray(small), (min(int(x * factor), small.width - 1), min(int(y * factor), small.height - 1))


def load(args: argparse.Namespace) -> tuple[Backbone, Callable[[np.ndarray], Tensor]]:
    """The backbone in eval mode, and what makes its input of an RGB image."""
    if args.config is None:
        return load_backbone(args.backbone, args.checkpoint)
    config = Config.fromfile(args.config)
    if args.checkpoint is None:
        model: Any = build_model(config)
    else:
        model = load_trained(config, args.checkpoint)[0]
    if not isinstance(model.backbone, Backbone):
        raise ValueError(f'the backbone of {args.config} is {type(model.backbone).__name__}, and not of mmvit')
    mean, std = (values.numpy() for values in mean_and_std(model))
    is_rgb = config.model.data_preprocessor.get('bgr_to_rgb', False)
    return model.backbone, partial(normalised, mean=mean, std=std, is_rgb=is_rgb)


def load_backbone(name: str, checkpoint: str | None) -> tuple[Backbone, Callable[[np.ndarray], Tensor]]:
    """A backbone alone, with the normalisation of its classifier."""
    if name not in BACKBONES:
        raise ValueError(f'there is no backbone {name}: take one of {", ".join(sorted(BACKBONES))}')
    family, arch = BACKBONES[name]
    backbone: Any = family
    backbone = backbone(arch).eval()
    if checkpoint is not None:
        backbone.load_official(checkpoint)
    classifier = family.timm_cfg(arch)
    mean = 255 * np.array(classifier.get('mean', IMAGENET_DEFAULT_MEAN))
    std = 255 * np.array(classifier.get('std', IMAGENET_DEFAULT_STD))
    return backbone, partial(normalised, mean=mean, std=std)


def normalised(photo: np.ndarray, mean: np.ndarray, std: np.ndarray, is_rgb: bool = True) -> Tensor:
    """RGB pixels (H, W, 3) of 0 to 255 -> (1, 3, H, W), in BGR order if the network was trained so."""
    photo = photo if is_rgb else photo[..., ::-1]
    return torch.from_numpy((photo - mean) / std).float().permute(2, 0, 1)[None]


def draw_stages(photo: np.ndarray, maps: dict[int, Tensor], backbone: Backbone) -> Figure:
    """The photograph, and over it the feature map of each stage."""
    strides = dict(zip(backbone.out_indices, backbone.out_strides, strict=True))
    tiles = [('photograph', enlarge(photo))]
    for stage, values in maps.items():
        places = over_image(values, strides[stage], photo.shape[:2])
        tiles.append((f'stage {stage}, stride {strides[stage]}', heat(photo, places)))
    return sheet(tiles)


def draw_views(photo: np.ndarray, views: list[View], at: tuple[int, int]) -> Figure:
    """The photograph, with the position if a view is of it, and over it each view."""
    plain = enlarge(photo)
    first = mark(plain, photo, at) if any(view.query for view in views) else plain
    return sheet([('photograph', first), *(draw_view(photo, view, at) for view in views)])


def draw_view(photo: np.ndarray, view: View, at: tuple[int, int]) -> tuple[str, np.ndarray]:
    """Title and picture of a view. One of a single sentence shows that sentence alone, which is small."""
    values = over_image(view.map, view.pixels, photo.shape[:2])
    if view.query and view.cell:
        x, y = (position // view.cell * view.cell for position in at)
        part = np.s_[y : y + view.cell, x : x + view.cell]
        return view.name, mark(heat(photo[part], values[part]), photo[part], (at[0] - x, at[1] - y))
    picture = heat(photo, values, view.is_signed)
    if view.cell:
        picture = draw_cells(picture, photo, view.cell)
    return view.name, mark(picture, photo, at) if view.query else picture


def heat(photo: np.ndarray, values: Tensor, is_signed: bool = False) -> np.ndarray:
    """The values (H, W) over the photograph (H, W, 3), from blue to red; signed ones over grey, with 0 in white."""
    picture = enlarge(photo)
    zoom = len(picture) // len(photo)
    large = values.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    if not is_signed:
        return Visualizer.draw_featmap(large[None], picture, alpha=ALPHA)
    scaled = 0.5 + 0.5 * large / values.abs().max().clamp(min=1e-12)
    colours = 255 * colormaps['bwr'](scaled.numpy())[..., :3]
    return (ALPHA * colours + (1 - ALPHA) * picture.mean(axis=2, keepdims=True)).astype(np.uint8)


def enlarge(photo: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) a whole number of times larger, so that lines and marks are fine on it."""
    zoom = -(-TILE // max(photo.shape[:2]))
    return photo.repeat(zoom, 0).repeat(zoom, 1)


def draw_cells(picture: np.ndarray, photo: np.ndarray, cell: int) -> np.ndarray:
    """The borders of windows or sentences of ``cell`` pixels of the photograph."""
    zoom = len(picture) // len(photo)
    height, width = picture.shape[:2]
    columns, rows = (torch.arange(0, end, cell * zoom) for end in (width, height))
    visualizer = Visualizer(image=picture)
    for x, y in (
        (columns.repeat(2, 1).T, torch.tensor([[0, height]])),
        (torch.tensor([[0, width]]), rows.repeat(2, 1).T),
    ):
        x, y = torch.broadcast_tensors(x, y)
        visualizer.draw_lines(x, y, colors='white', line_widths=0.6)
    return visualizer.get_image()


def mark(picture: np.ndarray, photo: np.ndarray, at: tuple[int, int]) -> np.ndarray:
    """A ring around a pixel of the photograph."""
    zoom = len(picture) // len(photo)
    centre = torch.tensor([[(at[0] + 0.5) * zoom, (at[1] + 0.5) * zoom]])
    visualizer = Visualizer(image=picture)
    for colour, width in (('black', 4), ('white', 2)):
        visualizer.draw_circles(centre, torch.tensor([9.0]), edge_colors=colour, line_widths=width, alpha=1.0)
    return visualizer.get_image()


def sheet(tiles: list[tuple[str, np.ndarray]]) -> Figure:
    """Titles and pictures in a row."""
    height, width = tiles[0][1].shape[:2]
    figure = Figure(figsize=(2.6 * len(tiles), 2.6 * height / width + 0.3), layout='constrained')
    for axes, (title, picture) in zip(figure.subplots(1, len(tiles)), tiles, strict=True):
        axes.imshow(picture)
        axes.set_title(title, fontsize=8)
        axes.axis('off')
    return figure


if __name__ == '__main__':
    main()
