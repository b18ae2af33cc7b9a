"""What a model predicts on: images and videos, by path, address or array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from warnings import warn

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmvit.commands import check_folder
from mmvit.deploy.runtime import IMAGES, VIDEOS

Input = str | Path | np.ndarray
Inputs = Input | Sequence[Input]


@dataclass
class Frame:
    """An image with its name: a path, an address, or an array (H, W, 3) in BGR order.

    Args:
        name: No other frame has it.
        path: What a person finds it by.
    """

    name: str
    content: str | np.ndarray
    path: str
    source: Source

    @property
    def is_address(self) -> bool:
        return isinstance(self.content, str) and has_scheme(self.content)


@dataclass
class Source:
    """An image, or a video of ``length`` frames and ``rate`` frames a second. An image has the rate 0."""

    name: str
    content: str | np.ndarray
    length: int = 1
    rate: float = 0.0

    def frames(self) -> Iterator[Frame]:
        if not self.rate:
            path = self.content if isinstance(self.content, str) else self.name
            yield Frame(self.name, self.content, path, self)
            return
        for number, image in enumerate(mmcv.VideoReader(self.content), 1):
            yield Frame(f'{self.name}_{number:06}', image, f'frame {number} of {self.content}', self)
        if number < self.length:
            warn(f'{self.content} breaks off: it has {number} of {self.length} frames', stacklevel=2)


def find_sources(inputs: Inputs, out: str | Path | None = None) -> list[Source]:
    """All images and videos of the inputs, with names that differ. Files are looked up, and videos opened."""
    several: Any = inputs if isinstance(inputs, list | tuple) else [inputs]
    sources = [source for item in several for source in sources_of(item)]
    if not sources:
        raise ValueError('there are no inputs: give at least one image, folder or video')
    if len({source.name for source in sources}) < len(sources):
        for number, source in enumerate(sources, 1):
            source.name = f'{number:06}_{source.name}'
    if out:
        check_out(Path(out), sources)
    return sources


def sources_of(item: Input) -> Iterator[Source]:
    if isinstance(item, np.ndarray):
        check_array(item)
        yield Source('array.png', item)
    elif not isinstance(item, str | Path):
        raise TypeError(f'an input is a path, an address or an array, and not {type(item).__name__}')
    elif has_scheme(str(item)):
        yield source_of(str(item), Path(unquote(urlsplit(str(item)).path)).name or 'image')
    elif Path(item).is_dir():
        files = sorted(path for path in Path(item).iterdir() if path.suffix.lower() in IMAGES)
        if not files:
            raise FileNotFoundError(f'the folder {item} has no images ({", ".join(IMAGES)})')
        yield from (source_of(str(path), path.name) for path in files)
    elif not Path(item).is_file():
        raise FileNotFoundError(f'there is no file and no folder {item}')
    else:
        yield source_of(str(item), Path(item).name)


def has_scheme(path: str) -> bool:
    return path.startswith(('http://', 'https://'))


def source_of(path: str, name: str) -> Source:
    if Path(name).suffix.lower() not in VIDEOS:
        return Source(name, path)
    video = mmcv.VideoReader(path)
    if video.read() is None:
        raise OSError(f'{path} is not a video that OpenCV can read')
    return Source(name, path, max(video.frame_cnt, 1), video.fps or 25.0)


def check_array(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f'an image is uint8 (H, W, 3) in BGR order, and not {image.dtype} {image.shape}')


def check_out(out: Path, sources: Sequence[Source]) -> None:
    """Raises ValueError if the folder cannot be made, or a drawn picture would be written over its image."""
    check_folder(out)
    paths = (source.content for source in sources if isinstance(source.content, str))
    if any(not has_scheme(path) and Path(path).resolve().parent == out.resolve() for path in paths):
        raise ValueError(f'results in {out} would overwrite the inputs there: take another folder')


def data_of_config(config: Config) -> Any:
    """The config's test data, without what is in their files; None if they have to be on this machine and are not.

    Raises:
        ValueError: There are none, or not of a registered type, or they wrap others.
    """
    if not config.get('test_dataloader'):
        raise ValueError('the config has no test_dataloader, whose pipeline prepares the images')
    dataset = config.test_dataloader.dataset
    if {'dataset', 'datasets'} & dataset.keys():
        raise ValueError(f'the test data are a {dataset.type} around others: name one data set in test_dataloader')
    init_default_scope(config.default_scope)
    try:
        return DATASETS.build({**dataset, 'lazy_init': True})
    except KeyError as error:
        raise ValueError(f'custom_imports of the config lack the module of its test data ({error})') from error
    except (AssertionError, OSError):  # some of mmseg's look for their folder
        return None
