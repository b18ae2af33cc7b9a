"""What is PyramidTNT's own: positions at any size, padding, upsampled strides."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint

from mmvit.cpu import pyramid_tnt as on_cpu
from mmvit.cpu.pyramid_tnt import WholeTable
from mmvit.models import PyramidTNT
from mmvit.models.pyramid_tnt import RelativePosition, key_grid, resize

FAMILY = next(family for family in FAMILIES if family.cls is PyramidTNT)


def build(**kwargs):
    torch.manual_seed(0)
    return PyramidTNT(**{'arch': FAMILY.small, **kwargs}).eval()


def image(size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def whole_table(table, trained, size, reduction):
    """The resized table, made plainly: first the keys of every query, then the queries of every key."""
    keys, new_keys = key_grid(trained, reduction), key_grid(size, reduction)
    heads, queries = table.shape[1:3]
    out = F.interpolate(table.view(heads, queries, *keys), new_keys, mode='bicubic').flatten(2)
    out = F.interpolate(out.mT.reshape(heads, -1, *trained), size, mode='bicubic').flatten(2)
    return out.mT[None]


@pytest.mark.parametrize(
    ('trained', 'size', 'reduction'), [((8, 8), (9, 13), 2), ((8, 8), (4, 5), 4), ((4, 4), (7, 3), 1)]
)
def test_attention_with_a_resized_table(trained, size, reduction):
    torch.manual_seed(0)
    (h, w), (kh, kw) = size, key_grid(size, reduction)
    keys = math.prod(key_grid(trained, reduction))
    table = torch.randn(1, 2, math.prod(trained), keys, requires_grad=True)
    q, k, v = torch.randn(3, 2, 2, h * w, 8), torch.randn(2, 2, kh * kw, 8), torch.randn(2, 2, kh * kw, 8)
    q = q[0]
    results = []
    for out in (
        RelativePosition(table, trained, size, reduction).attend(q, k, v),
        WholeTable(RelativePosition(table, trained, size, reduction)).attend(q, k, v),
        ((8**-0.5 * q @ k.mT + whole_table(table, trained, size, reduction)).softmax(-1)) @ v,
    ):
        (gradient,) = torch.autograd.grad(out.sin().sum(), table)
        results.append((out, gradient))
    torch.testing.assert_close(results[0], results[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[1], results[2], rtol=1e-4, atol=1e-5)


def test_the_table_of_the_training_size_is_the_parameter():
    table = build().stages[0].relative_pos
    position = RelativePosition(table, (8, 8), (8, 8), 4)
    assert torch.equal(WholeTable(position).table, table)
    q, k, v = torch.randn(1, 2, 64, 16), torch.randn(1, 2, 4, 16), torch.randn(1, 2, 4, 16)
    plain = (16**-0.5 * q @ k.mT + table).softmax(-1) @ v
    torch.testing.assert_close(position.attend(q, k, v), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(20, 24), (13, 9), (8, 16)])
def test_resized_tables_of_smooth_functions_stay_them(size):
    def places(grid):
        y = (torch.arange(grid[0]) + 0.5) / grid[0]
        x = (torch.arange(grid[1]) + 0.5) / grid[1]
        return torch.stack(torch.meshgrid(y, x, indexing='ij'), -1).flatten(0, 1)

    def table(grid, reduction):
        q, k = places(grid)[:, None], places(key_grid(grid, reduction))[None]
        return (torch.sin(2 * q[..., 0] - k[..., 1]) + q[..., 1] * k[..., 0])[None, None]

    trained, reduction = (16, 16), 2
    position = WholeTable(RelativePosition(table(trained, reduction), trained, size, reduction))
    torch.testing.assert_close(position.table, table(size, reduction), rtol=0, atol=0.06)
    pos = places(trained).sin()[None]
    torch.testing.assert_close(resize(pos, trained, size), places(size).sin()[None], rtol=0, atol=0.03)


@pytest.mark.parametrize('size', [(33, 40), (65, 97), (57, 63)])
def test_input_is_padded_at_right_and_bottom(size):
    model = build()
    padded = F.pad(image(size), (0, -size[1] % 8, 0, -size[0] % 8))
    for a, b in zip(model(image(size)), model(padded), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('size', [(64, 64), (65, 97), (100, 36)])
def test_upsampled_maps(size):
    native, upsampled = build(), build(upsample=True)
    assert native.out_strides == (8, 16, 32, 64)
    assert upsampled.out_strides == (4, 8, 16, 32)
    for out, source, stride in zip(upsampled(image(size)), native(image(size)), upsampled.out_strides, strict=True):
        assert out.shape[2:] == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        assert out.is_contiguous()
        expected = F.interpolate(source, scale_factor=2, mode='bilinear')[:, :, : out.shape[2], : out.shape[3]]
        torch.testing.assert_close(out, expected)


def test_images_that_are_not_square():
    model = build(img_size=(96, 64))
    assert model.stem.outer_pos.shape[1] == 12 * 8
    assert [tuple(s.grid) for s in model.stages] == [(12, 8), (6, 4), (3, 2), (2, 1)]
    assert model(image((96, 64)))[0].shape[2:] == (12, 8)
    assert model(image((64, 96)))[0].shape[2:] == (8, 12)


def test_checkpoint_of_another_training_size_loads_with_one_line(tmp_path, caplog):
    source, target = build(), build(img_size=128)
    shapes = {k: v.shape for k, v in target.state_dict().items()}
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        load_checkpoint(target, str(tmp_path / 'weights.pth'), strict=True)
    logger.removeHandler(caplog.handler)
    assert sum('resized tables' in r.getMessage() for r in caplog.records) == 1
    assert {k: v.shape for k, v in target.state_dict().items()} == shapes
    # Used at the new size, both resize the same tables, one on loading and one on the way.
    for a, b in zip(target(image((128, 128))), source(image((128, 128))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    again = build(img_size=128)
    again.load_state_dict(target.state_dict(), strict=True)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_tables_that_are_not_square_cannot_be_resized():
    weights = build(img_size=(96, 64)).state_dict()
    with pytest.raises(ValueError, match='not of a square image'):
        build().load_state_dict(weights)


def test_too_small_img_size():
    with pytest.raises(ValueError, match='img_size'):
        build(img_size=16)


@torch.no_grad()
def test_a_table_too_large_is_not_made(monkeypatch):
    model, x = build(), image((72, 136))
    expected = model(x)
    assert all(stage in on_cpu._tables for stage in model.stages)
    monkeypatch.setattr(on_cpu, 'LARGEST_TABLE', 0)
    model = build()
    outs = model(x)
    assert not any(stage in on_cpu._tables for stage in model.stages)
    for out, reference in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, reference, rtol=0, atol=1e-4 * reference.std().item())


@torch.no_grad()
def test_training_gives_the_kept_tables_back():
    model = build()
    model(image((72, 136)))
    assert all(stage in on_cpu._tables for stage in model.stages)
    model.eval()
    assert all(stage in on_cpu._tables for stage in model.stages)
    model.train()
    assert not any(stage in on_cpu._tables for stage in model.stages)
