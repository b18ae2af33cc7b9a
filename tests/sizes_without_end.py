"""Measures whether memory grows while every image has another size: ``python tests/sizes_without_end.py MPViT``.

A tiny backbone in inference, in one process. The memory after all passes is compared with the memory after the first
500; the status is 1 if it is more than a tenth larger.
"""

import argparse
import os
import random
from pathlib import Path

import torch

from mmvit.models import families

SETTLED = 500  # passes
LARGEST_GROWTH = 1.1
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('family', choices=[family.__name__ for family in families.FAMILIES])
    parser.add_argument('--passes', type=int, default=3000)
    parser.add_argument('--smallest', type=int, default=32, help='pixels of a side (default: %(default)s)')
    parser.add_argument('--largest', type=int, default=512, help='pixels of a side (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    print(f'PyTorch {torch.__version__}, {torch.get_num_threads()} threads')
    family = next(family for family in families.FAMILIES if family.__name__ == options.family)
    model = family('tiny').eval()
    draw = random.Random(options.seed)
    settled = 0.0
    for number in range(1, options.passes + 1):
        run(model, draw.randint(options.smallest, options.largest), draw.randint(options.smallest, options.largest))
        if number == SETTLED:
            settled = resident()
        if number % 100 == 0:
            print(f'{options.family}: {resident():.0f} MiB after {number} passes', flush=True)
    growth = resident() / settled
    print(f'{options.family}: {growth:.3f} times the memory after {SETTLED} passes')
    raise SystemExit(growth > LARGEST_GROWTH)


@torch.no_grad()
def run(model: torch.nn.Module, height: int, width: int) -> None:
    model(torch.rand(1, 3, height, width))


def resident() -> float:
    """Memory of this process, in MiB."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / MIB


if __name__ == '__main__':
    main()
