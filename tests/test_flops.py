"""The counter against numbers worked out by hand, and against what the papers print."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvit.flops import count_work
from mmvit.models import MPViT, PyramidTNT, RegionViT


def multiply_adds(function, *args):
    return count_work(function, *args).multiply_adds


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('grad', [False, True])
def test_attention_and_its_projection(masked, grad):
    q, k, v = (torch.rand(2, 3, n, 8, requires_grad=grad) for n in (5, 7, 7))
    mask = torch.rand(5, 7) if masked else None
    expected = 2 * 3 * (5 * 7 * 8 + 5 * 7 * 8)
    assert multiply_adds(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) == expected


def test_backward_pass_of_attention():
    # q k^T again, then the gradients of the weights, values, queries and keys: five products to the forward's two.
    q = torch.rand(2, 3, 5, 8, requires_grad=True)

    def step():
        F.scaled_dot_product_attention(q, q, q).sum().backward()

    assert multiply_adds(step) == (2 + 5) * 2 * 3 * (5 * 5 * 8)


def test_small_network_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 4, 10))
    forward = 3 * 8 * 9 * (6 * 4) + 8 * 6 * 4 * 10
    x = torch.rand(2, 3, 6, 4)
    assert multiply_adds(network, x) == 2 * forward
    # The backward pass makes two gradients of each layer, but none of the image.
    assert multiply_adds(lambda: network(x).sum().backward()) == 2 * (3 * forward - 3 * 8 * 9 * (6 * 4))


@pytest.mark.parametrize(
    ('layer', 'forward'),
    [
        (nn.Conv2d(8, 8, 3, groups=8), 8 * 9 * (4 * 5)),
        (nn.Conv2d(8, 16, 3, groups=4, stride=2), 16 * 2 * 9 * (2 * 3)),
        (nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2), 8 * 2 * 4 * (6 * 7)),
    ],
    ids=['depthwise', 'grouped', 'transposed'],
)
def test_backward_pass_of_grouped_convolutions(layer, forward):
    x = torch.rand(1, 8, 6, 7, requires_grad=True)
    assert multiply_adds(layer, x) == forward
    assert multiply_adds(lambda: layer(x).sum().backward()) == 3 * forward


PRODUCTS = {
    'einsum': lambda a, b: torch.einsum('bij,bjk->bik', a, b),
    'matmul': lambda a, b: a @ b,
    'baddbmm': lambda a, b: torch.baddbmm(torch.zeros(2, 4, 6), a, b),
    'baddbmm_': lambda a, b: torch.zeros(2, 4, 6).baddbmm_(a, b),
    'addmm_': lambda a, b: [torch.zeros(4, 6).addmm_(a[i], b[i]) for i in range(2)],
    'out': lambda a, b: torch.bmm(a, b, out=torch.empty(2, 4, 6)),
}


@pytest.mark.parametrize('product', PRODUCTS.values(), ids=PRODUCTS.keys())
def test_every_way_to_write_a_product(product):
    assert multiply_adds(product, torch.rand(2, 4, 5), torch.rand(2, 5, 6)) == 2 * 4 * 5 * 6


def test_traffic():
    a, b = torch.rand(4, 5), torch.rand(5, 6)
    assert count_work(lambda: a @ b).traffic == 4 * (4 * 5 + 5 * 6 + 4 * 6)
    assert count_work(lambda: a.t().reshape(2, 10)[:1]).traffic == 4 * (20 + 20)  # views are free, the copy is not
    assert count_work(a.bfloat16).traffic == (4 + 2) * 20
    assert count_work(lambda: a[:1].expand(100, 5) + 1).traffic == 4 * (20 + 500)  # read once, with its whole storage


@pytest.mark.parametrize(
    ('model', 'size', 'published'),
    [
        (lambda: MPViT('xsmall'), 224, 2.9),
        (lambda: MPViT('small'), 224, 4.7),
        (lambda: RegionViT('tiny', det_norm=False), 224, 2.4),
        (lambda: RegionViT('small', det_norm=False), 224, 5.3),
        (lambda: PyramidTNT('tiny'), 192, 0.6),
        (lambda: PyramidTNT('small'), 256, 3.3),
    ],
)
def test_backbones_as_published(model, size, published):
    """Billions; the papers print one decimal."""
    with torch.no_grad():
        count = multiply_adds(model().eval(), torch.zeros(1, 3, size, size))
    assert count / 1e9 == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(('arch', 'window'), [('tiny', 7), ('tiny_w14', 14)])
def test_regionvit_tiny_by_hand(arch, window):
    """No figure of 'tiny_w14' was published. At 224 its last stage is half a window, which is padded."""
    regions, side = 224 // (4 * window), 56
    stem = 112**2 * 27 * 16 + side**2 * 9 * (16 * 32 + 32 * 64) + 224**2 * 3 * 64
    total = stem
    for i, (width, depth) in enumerate(zip((64, 128, 256, 512), (2, 2, 8, 2), strict=True)):
        if i:
            regions, side = math.ceil(regions / 2), math.ceil(side / 2)
            total += (side**2 + regions**2) * 9 * width  # depthwise
        tokens = regions**2 * (1 + window**2)
        attention = 2 * width * (regions**4 + tokens * (1 + window**2))
        total += depth * (4 * width**2 * (regions**2 + tokens) + attention + 8 * width**2 * tokens)
    with torch.no_grad():
        count = multiply_adds(RegionViT(arch, det_norm=False).eval(), torch.zeros(1, 3, 224, 224))
    assert count == pytest.approx(total, rel=1e-3)


def test_checkpointing_counts_what_is_recomputed():
    def step(with_cp):
        model = MPViT('tiny', with_cp=with_cp, out_indices=(0, 1)).train()
        return multiply_adds(lambda: sum(out.sum() for out in model(torch.zeros(1, 3, 64, 64))).backward())

    assert step(with_cp=True) > 1.1 * step(with_cp=False)


def test_kernels():
    a, b = torch.rand(4, 5), torch.rand(5, 6)
    assert count_work(lambda: torch.relu(a @ b)).kernels == 2
    assert count_work(lambda: a.t().reshape(2, 10)[:1]).kernels == 1  # the copy
