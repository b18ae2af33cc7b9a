"""Predictions of a trained detector or segmenter, with mmdet's and mmseg's inferencers.

Images, folders, videos, addresses and arrays go in. Data samples, COCO's results and drawn pictures come out. Nothing
in a checkpoint is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import mmcv
import mmengine
import numpy as np
import torch
from mmengine.config import Config
from mmengine.fileio import get_local_path
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement
from rich.progress import Progress
from torch import nn
from torch.nn.functional import interpolate
from torchvision.ops import box_convert

from mmvit.checkpoints.trained import load_trained
from mmvit.deploy.runtime import IMAGES, VIDEOS

Input = str | Path | np.ndarray
Inputs = Input | Sequence[Input]
STUFF = 1000  # mmdet's INSTANCE_OFFSET: a panoptic pixel is its class, and this many times the number of its instance


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
        self.inferencer: Any = safe_inferencer(self.config)(self.config, str(checkpoint), device=device)

    def predict(
        self,
        inputs: Inputs,
        out: str | Path | None = None,
        score: float = 0.3,
        batch_size: int = 1,
        progress: bool = True,
    ) -> Iterator[BaseDataElement]:
        """Predict image by image, and keep none in memory.

        ``out`` gets a drawn picture for each image and a drawn video for each video, ``images.json`` (their ids, names
        and sizes, and the categories), ``predictions.json`` (COCO's results) of a detector, and of a segmenter or a
        panoptic detector ``classes``, a folder of PNG files whose pixels are classes. If the config's annotation file
        is there, categories have the ids of that file, and its images, too. Otherwise ids are the indices of the
        classes, counted from 0, and images are counted from 1.

        Args, results and errors are those of ``mmvit.predict``.
        """
        sources = find_sources(inputs, out)
        with ExitStack() as stack:
            files = stack.enter_context(Files(self, Path(out), score, sources)) if out else None
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
                return self.inferencer.pipeline(frame.content)
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


def safe_inferencer(config: Config) -> type[BaseInferencer]:
    """The inferencer of a config's toolbox, as a class that runs nothing in a checkpoint."""
    scope = config.get('default_scope')
    try:
        if scope == 'mmdet':
            from mmdet.apis import DetInferencer as Inferencer  # noqa: PLC0415  one of the two is enough
        elif scope == 'mmseg':
            from mmseg.apis import MMSegInferencer as Inferencer  # noqa: PLC0415
        else:
            raise ValueError(f'default_scope of the config is {scope!r}, and not mmdet or mmseg')
    except ImportError as error:
        raise ImportError(f"{scope} is missing: run `pip install 'mmvit[{scope[2:]}]'` ({error})") from error

    class SafeInferencer(Inferencer):
        def _init_model(self, config: Config, checkpoint: str, device: str = 'cpu') -> nn.Module:
            model, meta = load_trained(config, checkpoint)
            known = {'palette': 'random', **test_dataset(config).metainfo, **meta}
            vars(model)['dataset_meta'] = {key: known[key] for key in ('classes', 'palette')}
            return model.to(device)

        def _init_visualizer(self, config: Config) -> Any:
            config.visualizer.update({'alpha': 0.4} if scope == 'mmdet' else {})  # what is under a mask is seen
            return super()._init_visualizer(config)

    return SafeInferencer


def test_dataset(config: Config, **options: Any) -> Any:
    """The config's test data, without what is in their files."""
    init_default_scope(config.default_scope)
    return DATASETS.build({**config.test_dataloader.dataset, 'lazy_init': True, **options})


def summary(done: int, out: str | Path | None) -> str:
    return f'{done} predictions before are {"written into " + str(out) if out else "not written, for out is not given"}'


# What goes in.


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
    """Raises ValueError if a drawn picture would be written over its image."""
    if out.is_file():
        raise ValueError(f'results are written into a folder, and {out} is a file')
    paths = (source.content for source in sources if isinstance(source.content, str))
    if any(not has_scheme(path) and Path(path).resolve().parent == out.resolve() for path in paths):
        raise ValueError(f'results in {out} would overwrite the inputs there: take another folder')


# What comes out.


@dataclass
class Files:
    """Writes what is found, image by image, so that all before an error is kept."""

    predictor: Predictor
    out: Path
    score: float
    sources: Sequence[Source]
    images: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Files:
        self.known = annotation_file(self.predictor.config)
        self.classes = list(self.predictor.inferencer.model.dataset_meta['classes'])
        self.categories = category_ids(self.known, self.classes)
        self.ids = image_ids(self.known, self.predictor.config, self.sources)
        self.results: Any = None
        self.video: tuple[Source, cv2.VideoWriter] | None = None
        return self

    def add(self, frame: Frame, sample: Any) -> None:
        """Write all that belongs to an image."""
        self.out.mkdir(parents=True, exist_ok=True)
        image = frame.content if isinstance(frame.content, np.ndarray) else mmcv.imread(frame.content)
        self._write_picture(frame, self.predictor.draw(image, sample, self.score))
        height, width = image.shape[:2]
        number = self.ids.get(str(frame.content), len(self.images) + 1) if self.ids else len(self.images) + 1
        if (classes := class_map(sample)) is not None:
            write_image(self.out / 'classes' / f'{frame.name}.png', classes)
        if 'pred_instances' in sample:
            self._write_results(list(coco_results(sample, number, self.categories)))
        self.images.append({'id': number, 'file_name': frame.name, 'height': height, 'width': width})

    def _write_picture(self, frame: Frame, picture: np.ndarray) -> None:
        source = frame.source
        if not source.rate:
            suffix = '' if Path(frame.name).suffix.lower() in IMAGES else '.png'
            write_image(self.out / f'{frame.name}{suffix}', picture)
            return
        if not self.video or self.video[0] is not source:
            self._end_video()
            self.video = source, open_video(self.out / source.name, source.rate, picture.shape)
        self.video[1].write(np.ascontiguousarray(picture))

    def _write_results(self, results: list[dict[str, Any]]) -> None:
        """Add results to the list in the file, a line for each."""
        if self.results is None:
            self.results = open(self.out / 'predictions.json', 'w')  # noqa: SIM115  __exit__ closes it
            self.results.write('[')
            self.separator = '\n'
        for result in results:
            self.results.write(self.separator + json.dumps(result))
            self.separator = ',\n'
        self.results.flush()

    def _end_video(self) -> None:
        if self.video:
            self.video[1].release()

    def __exit__(self, *_: object) -> None:
        self._end_video()
        if self.results:
            self.results.write('\n]\n')
            self.results.close()
        if self.images:
            names = zip(self.categories, self.classes, strict=True)
            categories = [{'id': number, 'name': name} for number, name in names]
            content = {'images': self.images, 'annotations': [], 'categories': categories}
            (self.out / 'images.json').write_text(json.dumps(content))


def annotation_file(config: Config) -> Mapping[str, Any]:
    """What the config's test data say in COCO's format; nothing if they are not there or have another one."""
    path = str(getattr(test_dataset(config), 'ann_file', ''))
    content = mmengine.load(path) if path.endswith('.json') and Path(path).is_file() else {}
    return content if isinstance(content, dict) and {'images', 'categories'} <= content.keys() else {}


def category_ids(known: Mapping[str, Any], classes: Sequence[str]) -> list[int]:
    """The category of each label, in mmdet's order: that of the file. Without a file, the label itself."""
    ids = [category['id'] for category in known.get('categories', ()) if category['name'] in classes]
    return ids if len(ids) == len(classes) else list(range(len(classes)))


def image_ids(known: Mapping[str, Any], config: Config, sources: Sequence[Source]) -> dict[str, int]:
    """{path: id} if the annotation file has all of the images."""
    if not known:
        return {}
    prefix = test_dataset(config).data_prefix
    folder = Path(prefix.get('img') or prefix.get('img_path') or '')
    ids = {(folder / image['file_name']).resolve(): image['id'] for image in known['images']}
    paths = {source.content: Path(source.content).resolve() for source in sources if isinstance(source.content, str)}
    found = {content: ids[path] for content, path in paths.items() if path in ids}
    return found if len(found) == len(sources) else {}


def coco_results(sample: Any, number: int, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    """An image's instances as COCO's results: ``bbox`` is left, top, width and height in pixels."""
    from mmdet.structures.mask import encode_mask_results  # noqa: PLC0415  only a detector has instances

    found = sample.pred_instances
    boxes = box_convert(found.bboxes, 'xyxy', 'xywh').tolist()
    masks = encode_mask_results(found.masks.numpy()) if 'masks' in found else [None] * len(boxes)
    for label, score, box, mask in zip(found.labels.tolist(), found.scores.tolist(), boxes, masks, strict=True):
        result = {'image_id': number, 'category_id': categories[label], 'bbox': box, 'score': score}
        if mask:
            result['segmentation'] = {'size': list(mask['size']), 'counts': mask['counts'].decode()}
        yield result


def class_map(sample: Any) -> np.ndarray | None:
    """(H, W) of uint8, or of uint16 if there are many classes: the class of each pixel. None: there is no such map."""
    if 'pred_sem_seg' in sample:
        classes = sample.pred_sem_seg.data[0].numpy()
    elif 'pred_panoptic_seg' in sample:
        classes = sample.pred_panoptic_seg.sem_seg[0].numpy() % STUFF
    else:
        return None
    return classes.astype(np.min_scalar_type(max(255, classes.max())))


def enlarged(image: np.ndarray, sample: Any, side: int) -> tuple[np.ndarray, Any]:
    """An image (H, W, 3) whose longer side is ``side``, and a copy of a sample that fits it."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    sample = sample.clone()
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found.bboxes = found.bboxes * factor
        if 'masks' in found:
            found.masks = interpolate(found.masks[None].float(), size)[0].bool()
    for maps, key in (('pred_sem_seg', 'data'), ('pred_panoptic_seg', 'sem_seg')):
        if maps in sample:
            pixels = interpolate(sample.get(maps).get(key)[None].double(), size)[0].long()
            sample.set_field(type(sample.get(maps))(**{key: pixels}), maps)
    return mmcv.imresize(image, size[::-1], interpolation='bicubic'), sample


def write_image(path: Path, image: np.ndarray) -> None:
    """Raises OSError if it cannot be written."""
    if not mmcv.imwrite(image, str(path)):
        raise OSError(f'OpenCV cannot write {path}')


def open_video(path: Path, rate: float, shape: Sequence[int]) -> cv2.VideoWriter:
    """A video of frames (H, W, 3). Raises OSError if it cannot be written."""
    path = path if path.suffix.lower() == '.mp4' else path.with_name(f'{path.name}.mp4')
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), rate, (shape[1], shape[0]))
    if not video.isOpened():
        raise OSError(f'OpenCV cannot write {path}')
    return video
