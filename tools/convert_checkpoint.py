"""Convert an official checkpoint to a file for `mim test`, and report what became of each of its entries.

    python tools/convert_checkpoint.py MaskRCNN_1x_RegionViT-S.pth -o s.pth
    mim test mmdet configs/maskrcnn_regionvit_s_d2.py --checkpoint s-1a2b3c4d.pth

SOURCE is a detectron2 detector, an mmseg 0.x segmenter or a classifier with one of mmvit's backbones. The report ends
with the command to test with. A detectron2 file needs one of the _d2 configs, which test like detectron2, or a config
that inherits from one. RegionViT's files need one for their schedule and image size, which only the names of the
released files tell. Give --config for a file of another name. Of a classifier only the backbone is kept, for training:

    python tools/convert_checkpoint.py mpvit_small.pth --config configs/maskrcnn_mpvit_s.py -o small.pth
    mim train mmdet configs/maskrcnn_mpvit_s.py --cfg-options \\
        model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=small-1a2b3c4d.pth

An entry of unknown meaning is an error; then nothing is written.
"""

import argparse
import sys

from mmvit.conversion import convert_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='path or http(s) address of the official file')
    parser.add_argument('--config', help='path of the config of the same network; by default the one that fits')
    parser.add_argument(
        '-o', '--out', required=True, help='path ending in .pth or .safetensors; the name gets 8 digits of the sha256'
    )
    parser.add_argument('--weights', metavar='ENTRY', help='entry of the weights, of several: model, model_ema, ...')
    args = parser.parse_args()
    try:
        _, report = convert_checkpoint(args.source, args.config, args.out, args.weights)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f'nothing written: {error}')
    print(report)


if __name__ == '__main__':
    main()
