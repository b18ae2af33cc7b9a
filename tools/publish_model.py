"""Write a trained detector or segmenter as a folder for others: weights, config, card, metafile, and timm's files.

    python tools/publish_model.py configs/maskrcnn_mpvit_s.py epoch_12.pth --out maskrcnn_mpvit_s --licence CC-BY-4.0

docs/publish.md says what is written. Nothing in the checkpoint is run.
"""

import argparse
import sys
from pathlib import Path

from mmvit.publishing import publish


def main() -> None:
    args = parse_args()
    try:
        folder = publish(args.config, args.checkpoint, args.out, args.licence, args.url, args.results)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        sys.exit(f'nothing written: {error}')
    print(*sorted(folder.iterdir()), sep='\n')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('config', help='that the model was trained with')
    add('checkpoint', help='path or address of the trained model')
    add('--out', type=Path, required=True, help='new folder; its name is the name of the model')
    add('--licence', '--license', help='of the weights, as SPDX names it (CC-BY-4.0), or LicenseRef-NAME')
    add('--url', help="address of the server's folder that will hold the new folder (for metafile.yml)")
    add('--results', help="a .json file with metrics, as `mim test` writes it (default: the training's log)")
    return parser.parse_args()


if __name__ == '__main__':
    main()
