"""Make the embedded data set: scanned handwritten digits composed onto crops of real photographs, in COCO format.

The digits are scikit-learn's (1 797 scans of 8x8), the photographs scikit-image's. Boxes and masks come from the
scans themselves. Train and val share neither a scan nor a photograph. The same arguments give the same files.
For semantic segmentation each image of {train,val}/ has a map of classes in semantic/{train,val}/: 0 is background,
1 to 10 are the digits.

    python tools/make_digits.py data/digits
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

try:
    import skimage.data
    from pycocotools import mask as coco_mask
    from skimage.color import gray2rgb
    from skimage.io import imsave
    from skimage.transform import rescale, resize, rotate
    from skimage.util import img_as_float, img_as_ubyte
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    raise SystemExit(
        f'{error.name} is missing: run `pip install scikit-image scikit-learn pycocotools` for the photographs, '
        f'the digits and the masks.'
    ) from None

PHOTOGRAPHS = {
    'train': ('astronaut', 'brick', 'camera', 'cat', 'grass', 'hubble_deep_field', 'immunohistochemistry', 'moon'),
    'val': ('coffee', 'gravel', 'rocket'),
}
SCANS = {'train': range(1400), 'val': range(1400, 1797)}
DIGITS_PER_IMAGE = (3, 7)
DIGIT_SIDE = (24, 56)  # pixels of the 8x8 scan's side after enlarging
MAX_ROTATION = 15  # degrees
MIN_CONTRAST = 0.35  # of a digit's colour against the mean of what lies under it, per colour channel at best
MASK_LEVEL = 0.5


def main() -> None:
    args = parse_args()
    try:
        for split, count in (('train', args.train), ('val', args.val)):
            make_split(args.out, split, count, args.size, np.random.default_rng([args.seed, split == 'val']))
    except OSError as error:
        raise SystemExit(f'{args.out} has no whole data set: {error}; give a folder that can be written to') from None
    print(f'{args.out}: {args.train} train and {args.val} val images of {args.size}x{args.size}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder to write (replaced if it exists)')
    parser.add_argument('--train', type=int, default=1200, help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=100, help='held-out images (default: %(default)s)')
    parser.add_argument('--size', type=int, default=128, help='side of an image in pixels (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.size < 2 * DIGIT_SIDE[1]:
        parser.error(f'--size must be {2 * DIGIT_SIDE[1]} or more, to hold the digits')
    if min(args.train, args.val) < 1:
        parser.error('--train and --val must be 1 or more')
    return args


def make_split(out: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    """Write the images and annotation file of one split; a half-written one is never taken for whole."""
    photographs = {name: load_photograph(name) for name in PHOTOGRAPHS[split]}
    scans, labels = load_digits().images / 16, load_digits().target
    annotation_file = out / 'annotations' / f'instances_{split}.json'
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    annotation_file.unlink(missing_ok=True)
    for folder in (out / split, out / 'semantic' / split):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, count + 1):
        photograph = str(rng.choice(PHOTOGRAPHS[split]))
        image = random_crop(photographs[photograph], size, rng)
        placed = lay_on(image, scans, SCANS[split], rng)
        file_name = f'{image_id:06d}.png'
        imsave(out / split / file_name, img_as_ubyte(image), check_contrast=False)
        images.append({'id': image_id, 'file_name': file_name, 'height': size, 'width': size, 'photograph': photograph})
        semantic = np.zeros((size, size), np.uint8)
        for scan, mask in placed:
            semantic[mask > 0] = 1 + labels[scan]
            ids = {'id': len(annotations) + 1, 'image_id': image_id, 'scan': scan, 'category_id': int(labels[scan])}
            annotations.append({**ids, **encode(mask)})
        imsave(out / 'semantic' / split / file_name, semantic, check_contrast=False)
    categories = [{'id': digit, 'name': str(digit)} for digit in range(10)]
    coco = {'images': images, 'annotations': annotations, 'categories': categories}
    annotation_file.write_text(json.dumps(coco))


def load_photograph(name: str) -> np.ndarray:
    """An RGB photograph in 0..1, shrunk so that a crop shows a scene and not a smear."""
    image = img_as_float(getattr(skimage.data, name)())
    image = gray2rgb(image) if image.ndim == 2 else image[..., :3]
    return rescale(image, min(1, 400 / min(image.shape[:2])), channel_axis=2, anti_aliasing=True)


def lay_on(
    image: np.ndarray, scans: np.ndarray, allowed: range, rng: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Draw some digits on an image (size, size, 3) in 0..1, in place; each one's scan and mask (size, size)."""
    free = np.ones(image.shape[:2], bool)
    placed = []
    for scan in rng.choice(allowed, rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1), replace=False):
        alpha = enlarge(scans[scan], rng)
        for top, left in random_places(alpha.shape, len(image), rng):
            place = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            if free[place].all():
                image[place] += alpha[..., None] * (contrasting_colour(image[place], rng) - image[place])
                free[place] = False
                mask = np.zeros(free.shape, np.uint8, order='F')
                mask[place] = alpha > MASK_LEVEL
                placed.append((int(scan), mask))
                break
    return placed


def random_crop(photograph: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = (rng.integers(n - size + 1) for n in photograph.shape[:2])
    crop = photograph[top : top + size, left : left + size].copy()
    return crop[:, ::-1].copy() if rng.random() < 0.5 else crop


def enlarge(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scan (8, 8) as an opacity map in 0..1 of random size and tilt, cut to where it shows."""
    side = rng.integers(DIGIT_SIDE[0], DIGIT_SIDE[1] + 1)
    alpha = rotate(resize(scan, (side, side), order=3), rng.uniform(-MAX_ROTATION, MAX_ROTATION), resize=True, order=3)
    alpha = np.clip((alpha - 0.3) / 0.4, 0, 1)
    rows, columns = (np.flatnonzero((alpha > MASK_LEVEL).any(axis)) for axis in (1, 0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def random_places(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Some random places for something of this shape; a crowded image may have none left that is free."""
    for _ in range(20):
        yield int(rng.integers(size - shape[0] + 1)), int(rng.integers(size - shape[1] + 1))


def contrasting_colour(under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random RGB colour that can be told from the pixels (H, W, 3) it is laid on."""
    while True:
        colour = rng.random(3)
        if np.abs(colour - under.mean((0, 1))).max() >= MIN_CONTRAST:
            return colour


def encode(mask: np.ndarray) -> dict:
    """What a COCO annotation says of a mask."""
    rle = coco_mask.encode(mask)
    return {
        'bbox': coco_mask.toBbox(rle).tolist(),
        'area': int(mask.sum()),
        'iscrowd': 0,
        'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()},
    }


if __name__ == '__main__':
    main()
