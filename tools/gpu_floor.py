"""What networks ask of a GPU, counted without one: a table in Markdown.

    python tools/gpu_floor.py

The networks run on PyTorch's device "meta", where tensors have shapes but no values. They run as they are written, in
float32. The table is for bfloat16, with half of the bytes. A pass takes at least as long as the card needs for its
bytes, for its products, or for starting its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from benchmark import Job, find_builder
from torch import Tensor, nn
from write_tables import markdown

from mmvit.flops import Work, count_work

# An H100 SXM: bytes and operations a second as published, and the time to start a kernel from Python as assumed.
BANDWIDTH = 3.0e12
PEAK = 989e12
LAUNCH = 5e-6
SIZE = (800, 1333)
BATCHES = (1, 2)
HEADER = ['network', 'batch', 'pass', 'kernels', 'GB', 'GFLOP', 'bytes, ms', 'products, ms', 'starts, ms', 'x Swin-T']
NETWORKS = {  # as tools/benchmark.py calls them
    'Swin-T': 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'MPViT-S': 'mpvit_small',
    'PyramidTNT-S': 'pyramid_tnt_small',
    'RegionViT-S': 'regionvit_small',
}


def main() -> None:
    print(markdown([HEADER, *rows()]))


def rows() -> Iterator[list[str]]:
    """A row for each network, batch and pass."""
    swin: dict[tuple[str, ...], float] = {}
    for name, model in NETWORKS.items():
        for numbers, times in costs(find_builder(Job(model))):
            swin.setdefault(numbers[:2], max(times))  # Swin-T comes first
            ratio = max(times) / swin[numbers[:2]]
            yield [name, *numbers, *(f'{1e3 * time:.2f}' for time in times), f'{ratio:.2f}']


def costs(make: Callable[[], nn.Module]) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    """For each batch and pass: what the table says of it, and the three times, in seconds."""
    model = make().to('meta')
    for batch in BATCHES:
        x = torch.empty(batch, 3, *SIZE, device='meta')
        for kind, run in (('forward', forward), ('training', step)):
            in_float32 = count_work(run, model, x)
            work = replace(in_float32, traffic=in_float32.traffic // 2)
            flops = 2 * work.multiply_adds
            numbers = (str(batch), kind, str(work.kernels), f'{work.traffic / 1e9:.2f}', f'{flops / 1e9:.0f}')
            yield numbers, floors(work)


def floors(work: Work) -> tuple[float, float, float]:
    """Seconds for the bytes, for the products, and for the starts of the kernels."""
    return work.traffic / BANDWIDTH, 2 * work.multiply_adds / PEAK, work.kernels * LAUNCH


@torch.no_grad()
def forward(model: nn.Module, x: Tensor) -> None:
    model.eval()  # mmdet's Swin returns None
    model(x)


def step(model: nn.Module, x: Tensor) -> None:
    """A forward and a backward pass."""
    model.train()
    sum(out.sum() for out in model(x)).backward()


if __name__ == '__main__':
    main()
