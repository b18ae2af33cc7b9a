"""Runs a model that tools/export.py wrote, on images, folders of images and videos.

python runtime.py model.onnx image.jpg

This file works when it is copied alone. It needs numpy, opencv-python-headless and onnxruntime (or openvino), and
neither PyTorch nor OpenMMLab.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.mkv', '.mov', '.mp4', '.webm')


@dataclass
class Result:
    """What a model found in an image of height H and width W.

    Args:
        names: Names of the classes.
        palette: (classes, 3), the colours of the classes, BGR.
        boxes: (N, 4) float32: left, top, right and bottom in pixels. Of a segmenter N is 0.
        scores: (N,) float32, highest first.
        labels: (N,) int64, indices of ``names``.
        masks: (N, H, W) bool, of a detector with masks.
        classes: (H, W) int64, indices of ``names``, of a segmenter.
    """

    names: list[str]
    palette: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    masks: np.ndarray | None = None
    classes: np.ndarray | None = None


class Model:
    """A detector or segmenter in an ONNX file, or in OpenVINO's format.

    Args:
        path: The file, ``*.onnx`` or ``*.xml``.
        engine: What computes, on the CPU: ``'onnxruntime'`` or ``'openvino'``. None: OpenVINO for ``*.xml``,
            onnxruntime for the others.
        threads: How many threads compute. None: as many as the engine likes.
        precision: What OpenVINO computes in: ``'f32'``, ``'bf16'`` or ``'f16'``.

    Raises:
        FileNotFoundError: There is no such file, or a ``*.xml`` lacks its ``*.bin``.
        ImportError: The engine is not installed.
        ValueError: The file is not an exported detector or segmenter, the engine is unknown, or it cannot compute so.
    """

    def __init__(
        self, path: str | Path, engine: str | None = None, threads: int | None = None, precision: str = 'f32'
    ) -> None:
        engine = engine or ('openvino' if Path(path).suffix == '.xml' else 'onnxruntime')
        if engine not in ENGINES:
            raise ValueError(f'engine {engine!r} is unknown: take {" or ".join(ENGINES)}')
        if not Path(path).is_file():
            raise FileNotFoundError(f'there is no file {path}')
        if Path(path).suffix == '.xml' and not (weights := Path(path).with_suffix('.bin')).is_file():
            raise FileNotFoundError(f'{path} needs {weights.name} beside it: copy both')
        try:
            self._run, metadata = ENGINES[engine](str(path), threads, precision)
        except ImportError as error:
            raise ImportError(f'{engine} is not installed: run `pip install {engine}`') from error
        except ValueError:  # of the precision
            raise
        except Exception as error:  # each engine has its own kinds
            raise ValueError(f'{path} is not a model that {engine} can run: {error}') from error
        if metadata is None:
            raise ValueError(f'{path} does not say how to use it (its metadata lack mmvit): export it by mmvit')
        self.metadata: dict[str, Any] = json.loads(metadata)
        if self.metadata['task'] == 'features':
            raise ValueError(f'{path} is a backbone, whose feature maps show nothing: export a detector or segmenter')
        self.names: list[str] = self.metadata['classes']
        self.palette = np.array(self.metadata['palette'] or colours(len(self.names)), np.uint8)[:, ::-1]

    def __call__(self, image: str | Path | np.ndarray) -> Result:
        """Find what is in an image.

        Args:
            image: A path, or an image (H, W, 3) as OpenCV has it: uint8, BGR.

        Raises:
            OSError: The file is missing, or not an image.
            ValueError: The array is not such an image.
        """
        image = image if isinstance(image, np.ndarray) else read_image(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f'an image is uint8 (H, W, 3) in BGR order, and not {image.dtype} {image.shape}')
        resized = resize(image, self.metadata['resize'])
        outputs = self._run(np.ascontiguousarray(resized[None, ..., ::-1].transpose(0, 3, 1, 2), np.float32))
        size = image.shape[:2]
        if self.metadata['task'] == 'semantic':
            return Result(self.names, self.palette, classes=class_map(outputs, size))
        scale = np.divide(resized.shape[1::-1], size[::-1])
        boxes = outputs['boxes'] / np.tile(scale.astype(np.float32), 2)
        result = Result(self.names, self.palette, boxes, outputs['scores'], outputs['labels'])
        if 'masks' in outputs:
            masks, stride = outputs['masks'], self.metadata.get('mask_stride')
            frames = image_frames(masks, stride, scale) if stride else boxes
            result.masks = paste(masks, boxes, frames, size, self.metadata['mask_threshold'])
        return result


# The engines. Each gives a function that computes {name: output} of an image (1, 3, H, W), and the file's metadata.


def start_onnxruntime(path: str, threads: int | None, precision: str) -> tuple[Callable, str | None]:
    import onnxruntime  # noqa: PLC0415  one of the two is enough

    if precision != 'f32':
        raise ValueError(f'onnxruntime computes in f32 on CPUs: for {precision} take openvino')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    metadata = session.get_modelmeta().custom_metadata_map.get('mmvit')
    return lambda image: dict(zip(names, session.run(names, {'image': image}), strict=True)), metadata


def start_openvino(path: str, threads: int | None, precision: str) -> tuple[Callable, str | None]:
    import openvino  # noqa: PLC0415  one of the two is enough

    core = openvino.Core()
    if PRECISIONS.get(precision) not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        raise ValueError(f'OpenVINO does not compute in {precision} on this CPU')  # it would in f32, without a word
    model = core.read_model(path)
    key = ['framework', 'mmvit']
    options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': precision}
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    compiled = core.compile_model(model, 'CPU', options)
    metadata = model.get_rt_info(key).astype(str) if model.has_rt_info(key) else None
    return lambda image: {output.any_name: array for output, array in compiled(image).items()}, metadata


PRECISIONS = {'f32': 'FP32', 'bf16': 'BF16', 'f16': 'FP16'}  # and OpenVINO's names of them
ENGINES = {'onnxruntime': start_onnxruntime, 'openvino': start_openvino}


# Before the network.


def read_image(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 BGR, turned as its EXIF data say, whatever its channels and bits."""
    image = decode(path)
    if image is None:
        raise OSError(f'{path} is not an image that OpenCV can read')
    return image


def decode(path: str | Path) -> np.ndarray | None:
    content = np.fromfile(path, np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None


def resize(image: np.ndarray, rule: dict[str, Any] | None) -> np.ndarray:
    """An image (H, W, 3) at the size that the network was tested with, resized as it was there."""
    if rule is None:
        return image
    height, width = working_size(*image.shape[:2], **rule)
    if rule['interpolation'] == 'antialiased':
        return shrink(shrink(image.swapaxes(0, 1), width).swapaxes(0, 1), height)
    dtype = np.float32 if rule['interpolation'] == 'bilinear_float32' else np.uint8
    return cv2.resize(image.astype(dtype, copy=False), (width, height), interpolation=cv2.INTER_LINEAR)


def working_size(height: int, width: int, scale: list[int], keep_ratio: bool, rounding: str, **_: Any) -> list[int]:
    """(height, width) for the network, as mmcv or detectron2 compute it from an image's."""
    if not keep_ratio:
        return sorted(scale, reverse=height > width) if rounding == 'detectron2' else scale[::-1]
    long, short = max(height, width), min(height, width)
    if rounding == 'mmcv':
        factor = min(max(scale) / long, min(scale) / short)
        return [int(height * factor + 0.5), int(width * factor + 0.5)]
    # Twice, for the two products differ in their last bits, and with them one pixel of a few sizes.
    factor = min(scale) / short
    sides = [min(scale) if side == short else factor * side for side in (height, width)]
    if max(sides) > max(scale):
        factor = max(scale) / max(sides)
        sides = [factor * side for side in sides]
    return [int(side + 0.5) for side in sides]


def shrink(image: np.ndarray, height: int) -> np.ndarray:
    """An image (H, W, 3) resized to ``height`` rows as Pillow's bilinear filter does, in its integers."""
    step = len(image) / height
    reach = max(step, 1.0)
    centres = (np.arange(height) + 0.5) * step
    first = np.maximum((centres - reach + 0.5).astype(int), 0)
    end = np.minimum((centres + reach + 0.5).astype(int), len(image))
    rows = first[:, None] + np.arange(np.max(end - first))
    taps = np.maximum(1 - np.abs(rows - centres[:, None] + 0.5) / reach, 0) * (rows < end[:, None])
    taps = (taps / taps.sum(1, keepdims=True) * (1 << 22) + 0.5).astype(np.int32)
    out = np.full((height, *image.shape[1:]), 1 << 21, np.int32)
    for row, tap in zip(np.minimum(rows, len(image) - 1).T, taps.T, strict=True):
        out += image[row] * tap[:, None, None]
    return (out >> 22).astype(np.uint8)


# After it.


def paste(
    masks: np.ndarray, boxes: np.ndarray, frames: np.ndarray, size: tuple[int, int], threshold: float
) -> np.ndarray:
    """Masks (N, h, w) that fill frames (N, 4), within boxes (N, 4) of an image: (N, H, W) bool.

    A box without an area has no mask.
    """
    height, width = size
    out = np.zeros((len(masks), height, width), bool)
    for pasted, mask, (left, top, right, bottom), (x1, y1, x2, y2) in zip(out, masks, boxes, frames, strict=True):
        if left < right and top < bottom:
            rows, columns = sides = covered(top, bottom, height), covered(left, right, width)
            down, across = taps(rows, y1, y2, len(mask)), taps(columns, x1, x2, len(mask[0]))
            pasted[sides] = down @ mask @ across.T >= threshold
    return out


def image_frames(masks: np.ndarray, stride: int, scale: np.ndarray) -> np.ndarray:
    """The frames (N, 4) of masks (N, h, w) of a whole padded image: a cell is ``stride`` pixels of the input wide."""
    rows, columns = masks.shape[1:]
    frame = np.array([0, 0, columns * stride, rows * stride]) / np.tile(scale, 2)
    return np.tile(frame.astype(np.float32), (len(masks), 1))


def covered(low: float, high: float, limit: int) -> slice:
    """The pixels between two positions, and one more on either side, as far as there are any."""
    first, end = np.clip([np.floor(low) - 1, np.ceil(high) + 1], 0, limit).astype(int)
    return slice(first, end)


def taps(pixels: slice, low: float, high: float, cells: int) -> np.ndarray:
    """(pixels, cells): how pixels mix the cells that lie evenly between two positions, linearly and with 0 outside."""
    centres = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    positions = (centres - low) / (high - low) * cells - np.float32(0.5)
    return np.maximum(1 - np.abs(positions[:, None] - np.arange(cells, dtype=np.float32)), 0)


def class_map(outputs: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The class of each pixel of an image, from enlarged logits where the model gives them: (H, W) int64."""
    height, width = size
    if 'logits' not in outputs:
        rows, columns = outputs['classes'].shape[-2:]
        nearest_rows = (2 * np.arange(height) + 1) * rows // (2 * height)
        nearest_columns = (2 * np.arange(width) + 1) * columns // (2 * width)
        return outputs['classes'].reshape(rows, columns)[nearest_rows[:, None], nearest_columns]
    best = np.full(size, -np.inf, np.float32)
    classes = np.zeros(size, np.int64)
    for index, logits in enumerate(outputs['logits'].reshape(-1, *outputs['logits'].shape[-2:])):  # saves memory
        logits = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)
        better = logits > best
        best[better], classes[better] = logits[better], index
    return classes


# What is shown and written.


def colours(count: int) -> list[tuple[int, ...]]:
    """Colours for classes that have none, RGB: hues that are far from those before."""
    return [tuple(int(255 * c) for c in colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 1)) for i in range(count)]


def draw(image: np.ndarray, result: Result, score: float = 0.5) -> np.ndarray:
    """A copy of an image (H, W, 3) BGR with boxes, labels and masks from a score on, or with blended classes."""
    if result.classes is not None:
        return cv2.addWeighted(image, 0.5, result.palette[result.classes], 0.5, 0)
    image = image.copy()
    thickness = max(1, round(min(image.shape[:2]) / 400))
    for index in np.flatnonzero(result.scores >= score)[::-1]:  # the best on top
        colour = result.palette[result.labels[index]]
        if result.masks is not None:
            mask = result.masks[index]
            image[mask] = (image[mask] + colour.astype(np.uint16)) // 2
        left, top, right, bottom = (round(float(side)) for side in result.boxes[index])
        cv2.rectangle(image, (left, top), (right, bottom), colour.tolist(), thickness)
        text = f'{result.names[result.labels[index]]} {result.scores[index]:.2f}'
        write(image, text, left, top, colour, thickness)
    return image


def write(image: np.ndarray, text: str, left: int, bottom: int, colour: np.ndarray, thickness: int) -> None:
    """Put a text on a coloured ground at a corner, moved as far as is needed to be inside the image."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thickness
    (width, height), below = cv2.getTextSize(text, font, scale, thickness)
    left, bottom = max(0, min(left, image.shape[1] - width)), max(bottom, height + below)
    cv2.rectangle(image, (left, bottom - height - below), (left + width, bottom), colour.tolist(), cv2.FILLED)
    ink = (0, 0, 0) if colour @ (0.11, 0.59, 0.3) > 127 else (255, 255, 255)
    cv2.putText(image, text, (left, bottom - below // 2), font, scale, ink, thickness, cv2.LINE_AA)


def coco_annotations(result: Result, image_id: int) -> Iterator[dict[str, Any]]:
    """The instances of a detector's result as COCO's annotations, without their ids. A category's id is its label."""
    for index, (left, top, right, bottom) in enumerate(result.boxes.tolist()):
        annotation = {
            'image_id': image_id,
            'category_id': int(result.labels[index]),
            'bbox': [left, top, right - left, bottom - top],
            'area': (right - left) * (bottom - top),
            'score': float(result.scores[index]),
            'iscrowd': 0,
        }
        if result.masks is not None:
            mask = result.masks[index]
            annotation |= {'area': int(mask.sum()), 'segmentation': {'size': [*mask.shape], 'counts': encode(mask)}}
        yield annotation


def encode(mask: np.ndarray) -> str:
    """A mask (H, W) as COCO's compressed run lengths."""
    pixels = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(pixels, prepend=False)).tolist()
    lengths = np.diff([0, *changes, pixels.size]).tolist()
    # From the fourth on, the difference from the length before the last; six bits a letter, the lowest first.
    numbers = [n - lengths[i - 2] if i > 2 else n for i, n in enumerate(lengths)]
    return ''.join(letter for number in numbers for letter in letters(number))


def letters(number: int) -> Iterator[str]:
    while True:
        low, number = number & 31, number >> 5
        ends = number == (-1 if low & 16 else 0)
        yield chr(48 + low + (0 if ends else 32))
        if ends:
            return


# The command.


def main() -> None:
    args = parse_args()
    try:
        sys.exit(run(args))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f'error: {error}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help="the file, *.onnx or OpenVINO's *.xml")
    parser.add_argument('input', type=Path, help='an image, a folder of images or a video')
    parser.add_argument('--out', type=Path, default=Path('predictions'), help='folder (default: %(default)s)')
    parser.add_argument('--score', type=float, default=0.5, help='least score that is drawn (default: %(default)s)')
    parser.add_argument('--engine', choices=ENGINES, help='default: openvino for *.xml, onnxruntime for the others')
    parser.add_argument('--precision', choices=PRECISIONS, default='f32', help='that OpenVINO computes in')
    parser.add_argument('--threads', type=int, help='how many compute (default: as many as the engine likes)')
    return parser.parse_args()


def run(args: argparse.Namespace) -> int:
    """Write what a model finds in the input of a command. Returns 1 if an image could not be read, otherwise 0."""
    model = Model(args.model, args.engine, args.threads, args.precision)
    source = open_source(args.input)
    if args.out.resolve() == (args.input if args.input.is_dir() else args.input.parent).resolve():
        raise ValueError(f'results in {args.out} would overwrite the input: take another folder for --out')
    args.out.mkdir(parents=True, exist_ok=True)
    categories = [{'id': index, 'name': name} for index, name in enumerate(model.names)]
    coco: dict[str, list[dict]] = {'images': [], 'annotations': [], 'categories': categories}
    video: cv2.VideoWriter | None = None
    status = 0
    for number, (name, image) in enumerate(source.images, 1):
        print(f'\r{number} of {source.total}: {name}', end='', file=sys.stderr, flush=True)
        if image is None:
            print('\nerror: this is not an image that OpenCV can read', file=sys.stderr)
            status = 1
            continue
        result = model(image)
        drawn = draw(image, result, args.score)
        height, width = image.shape[:2]
        coco['images'].append({'id': number, 'file_name': name, 'height': height, 'width': width})
        for annotation in coco_annotations(result, number):
            coco['annotations'].append({'id': len(coco['annotations']) + 1, **annotation})
        if source.rate:
            if video is None:
                path = args.out / f'{args.input.stem}.mp4'
                video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), source.rate, (width, height))
            video.write(drawn)
        else:
            write_image(args.out / name, drawn)
            if result.classes is not None:
                classes = result.classes.astype(np.min_scalar_type(len(model.names)))  # 8 bits, or 16
                write_image(args.out / f'{name}.classes.png', classes)
    if video:
        video.release()
    if model.metadata['task'] != 'semantic':
        (args.out / 'predictions.json').write_text(json.dumps(coco))
    print(f'\n{args.out}', file=sys.stderr)
    return status


@dataclass
class Source:
    """Images (H, W, 3) BGR with their names, None for what is not an image.

    Args:
        rate: Frames a second, of a video.
    """

    images: Iterator[tuple[str, np.ndarray | None]]
    total: int
    rate: float | None = None


def open_source(path: Path) -> Source:
    """An image, a folder's images or a video's frames."""
    if path.suffix.lower() in VIDEOS:
        return open_video(path)
    if not path.is_dir():
        return Source(iter([(path.name, read_image(path))]), 1)
    paths = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
    if not paths:
        raise FileNotFoundError(f'{path} has no images ({", ".join(IMAGES)})')
    return Source(((file.name, decode(file)) for file in paths), len(paths))


def open_video(path: Path) -> Source:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise OSError(f'{path} is not there, or not a video that OpenCV can read')

    def frames() -> Iterator[tuple[str, np.ndarray]]:
        while capture.grab():
            yield f'{path.name}:{int(capture.get(cv2.CAP_PROP_POS_FRAMES))}', capture.retrieve()[1]

    return Source(frames(), int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS) or 25)


def write_image(path: Path, image: np.ndarray) -> None:
    if path.suffix.lower() not in IMAGES:
        path = path.with_name(f'{path.name}.png')
    cv2.imencode(path.suffix, image)[1].tofile(path)


if __name__ == '__main__':
    main()
