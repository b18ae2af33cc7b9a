"""Write a trained model as a file for images of any size, and prove that it gives what the model gives.

    python tools/export.py configs/maskrcnn_mpvit_s.py work_dirs/maskrcnn_mpvit_s/epoch_12.pth -o model.onnx

It takes RetinaNet, ATSS, Faster, Mask and Cascade R-CNN, Deformable DETR, DINO and Mask2Former of mmdet and the
EncoderDecoder of mmseg. docs/deploy.md says what the file takes and gives, and how to run it without PyTorch.
"""

import argparse
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmvit.checkpoints.trained import load_trained
from mmvit.commands import ending
from mmvit.deploy.exporter import check_target, export
from mmvit.deploy.runtime import IMAGES, read_image


def main() -> None:
    args = parse_args()
    with ending():
        check_target(args.out, integers=args.int8 is not None)
        images, calibration = (read_images(folder) for folder in (args.images, args.int8))
        config = Config.fromfile(args.config)
        model, meta = load_trained(config, args.checkpoint)
        names = {key: meta[key] for key in ('classes', 'palette') if key in meta}
        smaller = dict(half=args.half, calibration=calibration)
        export(model, args.out, config=config, with_logits=args.logits, images=images, **smaller, **names)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='path or address of the trained model')
    parser.add_argument(
        '-o', '--out', type=Path, default=Path('model.onnx'), help="*.onnx, or OpenVINO's *.xml (default: %(default)s)"
    )
    parser.add_argument('--logits', action='store_true', help='a segmenter returns its logits too')
    parser.add_argument('--images', type=Path, help='folder of images for the proof, beside made ones')
    parser.add_argument('--half', action='store_true', help='store the weights in 16 bits: half the size')
    parser.add_argument(
        '--int8', type=Path, metavar='FOLDER', help='compute in 8-bit integers, calibrated by its images (%(metavar)s)'
    )
    return parser.parse_args()


def read_images(folder: Path | None) -> list[np.ndarray]:
    """The images (H, W, 3) of a folder, RGB."""
    if folder is None:
        return []
    if paths := sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES):
        return [read_image(path)[..., ::-1] for path in paths]
    raise FileNotFoundError(f'{folder} has no images ({", ".join(IMAGES)})')


if __name__ == '__main__':
    main()
