"""A trained model of mmdet or mmseg that predicts image by image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.fileio import get_local_path
from mmengine.infer import BaseInferencer
from mmengine.structures import BaseDataElement
from rich.progress import Progress
from torch import nn
from torch.nn.functional import interpolate

from mmvit.checkpoints.trained import load_trained
from mmvit.predicting.inputs import Frame, Inputs, data_of_config, find_sources
from mmvit.predicting.results import Files


def predict(
    config: str | Path | Config,
    checkpoint: str | Path,
    inputs: Inputs,
    out: str | Path | None = None,
    device: str | None = None,
    score: float = 0.3,
    batch_size: int = 1,
    progress: bool = True,
) -> list[BaseDataElement]:
    """What a model finds in images. ``Predictor`` does it for more images than fit into memory.

    Args:
        config: Of mmdet or mmseg: its path, or as it was read.
        checkpoint: Path or address of the trained model.
        inputs: A path or an http(s) address of an image or a video, a folder of images, an image (H, W, 3), uint8 in
            BGR order, or a list of these.
        out: Folder that results are written into. None: nothing is written. ``Predictor.predict`` says what.
        device: What computes, as PyTorch names it. None: a GPU of CUDA if there is one, else the CPU.
        score: Least score of what is drawn. All that is found is returned and written.
        batch_size: How many images of one size go through the network together.
        progress: Show a bar with the time that is left.

    Returns:
        mmdet's ``DetDataSample`` or mmseg's ``SegDataSample`` for each image or frame, on the CPU.

    Raises:
        FileNotFoundError: There is no such file, or a folder has no images.
        OSError: A video cannot be read.
        TypeError: An input is none of these.
        ValueError: An array is no such image, the device cannot compute, or the config is of another toolbox.
        ImportError: The toolbox is not installed.
        RuntimeError: The checkpoint is not safe or does not fit. Or an image cannot be read: then the message says how
            many predictions were written before it.
    """
    find_sources(inputs, out)  # a wrong path is an error before the model is loaded
    return list(Predictor(config, checkpoint, device).predict(inputs, out, score, batch_size, progress))


class Predictor:
    """A trained model that predicts.

    Args:
        config: Of mmdet or mmseg: its path, or as it was read.
        checkpoint: Path or address of the trained model.
        device: What computes, as PyTorch names it. None: a GPU of CUDA if there is one, else the CPU.

    Attributes:
        inferencer: mmdet's ``DetInferencer`` or mmseg's ``MMSegInferencer``, which can be called as they are.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The device cannot compute, or the config is of another toolbox.
        ImportError: The toolbox is not installed.
        RuntimeError: The checkpoint is not safe, or does not fit the config.
    """

    def __init__(self, config: str | Path | Config, checkpoint: str | Path, device: str | None = None) -> None:
        device = usable_device(device)
        self.config = config if isinstance(config, Config) else Config.fromfile(config)
        inferencer = find_inferencer(self.config)
        self.data = data_of_config(self.config)
        self.inferencer: Any = safe(inferencer, self.data)(self.config, str(checkpoint), device=device)

    def predict(
        self,
        inputs: Inputs,
        out: str | Path | None = None,
        score: float = 0.3,
        batch_size: int = 1,
        progress: bool = True,
    ) -> Iterator[BaseDataElement]:
        """Predict image by image, and keep none in memory. Nothing happens before the first sample is asked for.

        ``out`` gets a drawn picture for each image and a drawn video for each video, ``images.json`` (their ids, names
        and sizes, and the categories), ``predictions.json`` (COCO's results) of a detector, and of a segmenter or a
        panoptic detector ``classes``, a folder of PNG files whose pixels are classes. If the config's annotation file
        is there, categories and images that it names have their ids, and other images the numbers after these.
        Otherwise categories are counted from 0 and images from 1.

        Args, results and errors are those of ``mmvit.predict``.
        """
        if batch_size < 1:
            raise ValueError(f'a batch has at least one image, and not {batch_size}')
        sources = find_sources(inputs, out)
        with ExitStack() as stack:
            files = stack.enter_context(self._files(Path(out), score)) if out else None
            bar = stack.enter_context(Progress(disable=not progress))
            frames = (frame for source in sources for frame in source.frames())
            shown = bar.track(frames, total=sum(source.length for source in sources), description='Predict')
            done = 0
            try:
                for frame, sample in self._run(iter(shown), batch_size):
                    if files:
                        files.add(frame, sample)
                    done += 1
                    yield sample
            except Exception as error:  # of decoders, networks, memory and disks
                raise RuntimeError(f'{error}. {summary(done, out)}') from error
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f'stopped. {summary(done, out)}') from None

    def draw(
        self, image: np.ndarray, sample: BaseDataElement, score: float = 0.3, side: int | None = None
    ) -> np.ndarray:
        """Draw what was found in an image.

        Args:
            image: (H, W, 3), BGR, uint8.
            sample: What was found in it.
            score: Least score that is drawn.
            side: Pixels of the longer side of the picture. None: as in the image.

        Returns:
            The picture, (H, W, 3), BGR, uint8.
        """
        if side:
            image, sample = enlarged(image, sample, side)
        options: dict[str, Any] = {'opacity': 0.5} if 'pred_sem_seg' in sample else {'pred_score_thr': score}
        self.inferencer.visualizer.line_width = max(1, round(min(image.shape[:2]) / 300))
        (picture,) = self.inferencer.visualize([image[..., ::-1]], [sample], return_vis=True, **options)
        return picture[..., ::-1]

    def _files(self, out: Path, score: float) -> Files:
        classes = list(self.inferencer.model.dataset_meta['classes'])
        return Files(out, self.data, classes, partial(self.draw, score=score))

    def _run(self, frames: Iterator[Frame], batch_size: int) -> Iterator[tuple[Frame, BaseDataElement]]:
        """Frames with what was found in them. A batch has neighbours of one size, so that nothing is padded."""
        while batch := [(frame, self._prepare(frame)) for frame in islice(frames, batch_size)]:
            for _, group in groupby(batch, key=lambda pair: pair[1]['inputs'].shape):
                some, data = zip(*group, strict=True)
                samples = self.inferencer.forward(self.inferencer.collate_fn(data))
                yield from ((frame, sample.cpu()) for frame, sample in zip(some, samples, strict=True))

    def _prepare(self, frame: Frame) -> dict[str, Any]:
        """What the config's test pipeline makes of an image: ``inputs`` (3, H, W), and ``data_samples``."""
        try:
            if not frame.is_address:
                data = self.inferencer.pipeline(frame.content)
            else:
                with get_local_path(frame.content) as path:
                    data = self.inferencer.pipeline(path)
                    frame.content = mmcv.imread(path)
        except Exception as error:  # each decoder has its own kinds
            raise OSError(f'{frame.path} is not an image that can be read ({error})') from error
        data['data_samples'].set_metainfo({'img_path': frame.path})
        return data


def usable_device(name: str | None) -> str:
    """The name of a device, after it has computed something. Raises ValueError if it cannot."""
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f'the device {name} cannot compute here ({str(error).splitlines()[0]})') from error
    return name


def find_inferencer(config: Config) -> type[BaseInferencer]:
    """The inferencer of a config's toolbox."""
    scope = config.get('default_scope')
    try:
        if scope == 'mmdet':
            from mmdet.apis import DetInferencer  # noqa: PLC0415  one of the two is enough

            return DetInferencer
        if scope == 'mmseg':
            from mmseg.apis import MMSegInferencer  # noqa: PLC0415

            return MMSegInferencer
    except ImportError as error:
        raise ImportError(f"{scope} is missing: run `pip install 'mmvit[{scope[2:]}]'` ({error})") from error
    raise ValueError(f'default_scope of the config is {scope!r}, and not mmdet or mmseg')


def safe(inferencer: type[BaseInferencer], data: Any) -> type[BaseInferencer]:
    """An inferencer that runs nothing in a checkpoint. ``data`` name the classes if the checkpoint does not."""

    class SafeInferencer(inferencer):  # type: ignore[misc, valid-type]
        def _init_model(self, config: Config, checkpoint: str, device: str = 'cpu') -> nn.Module:
            loaded, meta = load_trained(config, checkpoint)
            known = {'palette': 'random', **({} if data is None else data.metainfo), **meta}
            if 'classes' not in known:
                raise ValueError("neither the checkpoint nor the config's test data name the classes")
            model: Any = loaded
            model.dataset_meta = {key: known[key] for key in ('classes', 'palette')}
            return model.to(device)

        def _init_visualizer(self, config: Config) -> Any:
            if config.default_scope == 'mmdet':
                config.visualizer.alpha = 0.4  # what is under a mask is seen
            return super()._init_visualizer(config)

        def _init_collate(self, config: Config) -> Any:
            return pseudo_collate  # what all test loaders have; mmengine looks for it in the wrong registry and warns

    return SafeInferencer


def summary(done: int, out: str | Path | None) -> str:
    return f'Predictions before it: {done}' + (f', written into {out}' if out and done else '')


def enlarged(image: np.ndarray, sample: Any, side: int) -> tuple[np.ndarray, Any]:
    """An image (H, W, 3) whose longer side is ``side``, and a copy of a sample that fits it."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    sample = sample.clone()
    if 'pred_instances' in sample:
        found = sample.pred_instances = sample.pred_instances.clone()  # mmengine's clones share what they hold
        found.bboxes = found.bboxes * factor
        if 'masks' in found:
            found.masks = interpolate(found.masks[:, None].float(), size)[:, 0].bool()
    for maps, key in (('pred_sem_seg', 'data'), ('pred_panoptic_seg', 'sem_seg')):
        if maps in sample:
            pixels = interpolate(sample.get(maps).get(key)[None].double(), size)[0].long()
            sample.set_field(type(sample.get(maps))(**{key: pixels}), maps)
    return mmcv.imresize(image, size[::-1], interpolation='bicubic'), sample
