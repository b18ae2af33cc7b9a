"""Draws labelled images, and the sizes of their objects beside the anchors of a detector."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from mmvit.own_data.configs import colours
from mmvit.own_data.labels import IGNORED
from mmvit.own_data.sizes import Sizes

QUICK = dict(compress_level=1)
EDGE = [withStroke(linewidth=2, foreground='black')]  # text is read on any ground


def draw_boxes(images: Path, content: dict, path: Path) -> None:
    """Nine images, spread over data in the format of COCO, with boxes and classes."""
    names = {category['id']: category['name'] for category in content['categories']}
    ids = {image['file_name']: image['id'] for image in content['images']}

    def draw(axes: Axes, name: str) -> None:
        for item in content['annotations']:
            if item['image_id'] == ids[name]:
                x, y, w, h = item['bbox']
                axes.add_patch(Rectangle((x, y), w, h, fill=False, color='lime', linewidth=0.8))
                name_above(axes, names[item['category_id']], (x, y))

    draw_nine(images, sorted(ids), draw).savefig(path, dpi=150, pil_kwargs=QUICK)


def name_above(axes: Axes, name: str, place: tuple[float, float]) -> None:
    """Write a name above a place, so that it does not hide a tiny object."""
    axes.annotate(name, place, (0, 2), textcoords='offset points', color='lime', fontsize=7, path_effects=EDGE)


def draw_masks(images: Path, masks: Path, names: Sequence[str], classes: Sequence[str], path: Path) -> None:
    """Nine images of these names under their masks."""
    palette = [(r / 255, g / 255, b / 255) for r, g, b in colours(len(classes))]

    def draw(axes: Axes, name: str) -> None:
        values = np.asarray(Image.open((masks / name).with_suffix('.png')))
        hidden = np.ma.masked_equal(values, IGNORED)
        axes.imshow(
            hidden, ListedColormap(palette), vmin=-0.5, vmax=len(classes) - 0.5, alpha=0.5, interpolation='none'
        )

    figure = draw_nine(images, names, draw)
    patches = [Patch(color=colour, label=name) for colour, name in zip(palette, classes, strict=True)]
    figure.legend(handles=patches, loc='outside lower center', ncols=8)
    figure.savefig(path, pil_kwargs=QUICK)


def draw_nine(images: Path, names: Sequence[str], draw: Callable[[Axes, str], None]) -> Figure:
    """Nine of these images, or all if they are fewer, with what ``draw`` adds to each."""
    figure = Figure(figsize=(12, 12), layout='constrained')
    every = max(1, len(names) // 9)
    for axes, name in zip(figure.subplots(3, 3).flat, names[::every], strict=False):
        axes.imshow(np.asarray(Image.open(images / name).convert('RGB')))
        axes.set_title(name, fontsize=8)
        draw(axes, name)
    for axes in figure.axes:
        axes.axis('off')
    return figure


def draw_sizes(sizes: Sizes, path: Path) -> None:
    """How large objects are in the network, beside its anchors and strides."""
    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.subplots()
    axes.hist(sizes.objects, bins=list(np.geomspace(2, 2048, 60)), color='teal')
    axes.set_xscale('log', base=2)
    for values, style, label in ((sizes.strides, dict(color='grey', linestyle=':'), 'strides'),
                                 (sizes.anchors, dict(color='red', linewidth=0.8), 'sizes of anchors')):  # fmt: skip
        for i, value in enumerate(values):
            axes.axvline(value, **style, label=None if i else label)
    axes.set(xlabel='size in the network, pixels', ylabel='objects')
    axes.legend()
    figure.savefig(path, pil_kwargs=QUICK)
