"""What is RegionViT's own: window masks, wrapped relative positions, other windows, detection norms."""

import logging
import math

import pytest
import torch
from families import FAMILIES
from mmengine.logging import MMLogger

from mmvit.models import RegionViT, regionvit
from mmvit.models.regionvit import relative_index, resize_table, to_maps, to_windows, window_masks

CPU = torch.device('cpu')
FAMILY = next(family for family in FAMILIES if family.cls is RegionViT)
SMALL = dict(
    embed_dims=(16, 32, 64, 128), num_heads=(2, 2, 4, 4), depths=(2, 2, 2, 1), window=4, three_convs=True, peg=False
)
# With window 4 a patch is 16 pixels: padding on both axes, on one (the other gets a whole window of it), on none.
SIZES = [(57, 90), (64, 90), (57, 96), (64, 96), (32, 33)]


def build(**kwargs):
    torch.manual_seed(0)
    model = RegionViT(**{'arch': SMALL, **kwargs}).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return model


def image(size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def soil_padding(monkeypatch):
    """Put noise where windows are filled up."""

    def soiled(regional, local, window):
        padded = to_windows(torch.ones_like(regional), torch.ones_like(local), window) == 0
        return to_windows(regional, local, window) + 3 * padded * torch.randn(padded.shape)

    monkeypatch.setattr(regionvit, 'to_windows', soiled)


@pytest.mark.parametrize('arch', [SMALL, {**SMALL, 'peg': True}], ids=['plain', 'peg'])
@pytest.mark.parametrize('size', SIZES)
def test_exact_mask_lets_no_padding_be_seen(size, arch, monkeypatch):
    model = build(arch=arch, window_mask='exact')
    clean = model(image(size))
    soil_padding(monkeypatch)
    for a, b in zip(model(image(size)), clean, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_official_mask_lets_some_be_seen(monkeypatch):
    model = build()
    clean = model(image((57, 90)))
    soil_padding(monkeypatch)
    assert not torch.equal(model(image((57, 90)))[0], clean[0])


def masks_of(pad, exact=False, window=4, grid=(3, 4)):
    size = tuple(n * window - p for n, p in zip(grid, pad, strict=True))
    return window_masks(grid, size, window, exact, CPU)


@pytest.mark.parametrize('pad', [(0, 0), (2, 0), (0, 3), (2, 3), (4, 4), (4, 1)])
def test_masks_differ_in_the_corner_only(pad):
    loose, strict = masks_of(pad), masks_of(pad, exact=True)
    assert (loose | ~strict).all()  # what the exact mask allows, the official one does
    differing = (loose != strict).any(-1).any(-1)
    if pad not in ((0, 0), (4, 4)):  # there nothing is padded, or the corner has no valid token at all
        assert differing[-1, -1]
    differing[-1, -1] = False
    assert not differing.any()
    assert loose[:-1, :-1].all()
    assert loose[-1, -1].all() == (0 in pad)


def test_masks_by_the_definition():
    masks = masks_of((1, 2), window=3)
    places = [None, *((y, x) for y in range(3) for x in range(3))]
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            rows = all(p is None or p[0] < 2 for p in (a, b))
            columns = all(p is None or p[1] < 1 for p in (a, b))
            assert (masks[:-1, -1, i, j] == columns).all()
            assert (masks[-1, :-1, i, j] == rows).all()
            assert masks[-1, -1, i, j] == (rows or columns)


@pytest.mark.parametrize('grid', [(1, 1), (1, 3), (2, 1), (3, 4)])
@pytest.mark.parametrize('pad', [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_windows_hold_their_part_of_the_map(grid, pad):
    places = torch.arange(math.prod(grid)).view(1, 1, *grid).float()
    size = (4 * grid[0] - pad[0], 4 * grid[1] - pad[1])
    local = places.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, : size[0], : size[1]]
    windows = to_windows(places, local, 4)
    assert windows.shape == (*grid, 1, 17, 1)
    for before, after in zip((places, local), to_maps(windows, size, 4), strict=True):
        assert torch.equal(before, after)
    region = windows[:, :, :, :1]
    assert ((windows == region) | (windows == 0)).all()  # each window holds its region's number, or padding


@pytest.mark.parametrize('window', [2, 3, 7])
def test_relative_index_by_the_definition(window):
    index = relative_index(window)
    side = 2 * window - 1
    for query in range(window**2):
        for key in range(window**2):
            (y, x), (key_y, key_x) = divmod(query, window), divmod(key, window)
            row, column = ((k - q + window // 2) % side for q, k in ((y, key_y), (x, key_x)))
            assert index[query, key] == row * side + column


@pytest.mark.parametrize(('old', 'new', 'error'), [(7, 14, 0.03), (14, 7, 0.01), (4, 7, 0.06)])
def test_resized_table_of_a_smooth_function_stays_it(old, new, error):
    def table(window):
        """cos of the offset in shares of the largest, at each offset's place in the table."""
        offsets = torch.arange(1 - window, window)
        wrapped = (offsets + window // 2) % (2 * window - 1)
        share = offsets / (window - 1)
        values = torch.cos(1.5 * share[:, None] + 0.7) + 0.5 * share[None, :]
        out = torch.empty(2 * (2 * window - 1,))
        out[wrapped[:, None], wrapped[None, :]] = values
        return out.flatten()[None]

    torch.testing.assert_close(resize_table(table(old), new), table(new), rtol=0, atol=error)
    assert torch.equal(resize_table(table(old), old), table(old))


def test_checkpoint_of_another_window_loads(tmp_path):
    wide = RegionViT({**SMALL, 'window': 7})
    wide.load_state_dict(build().state_dict(), strict=True)
    even = torch.ones(1, 3, 112, 112)
    narrow = build()
    a, b = (m.stem.regional(even).mean(dim=(2, 3)) for m in (wide, narrow))
    torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)
    assert all(out.isfinite().all() for out in wide.eval()(image((57, 90))))


def test_classification_file_leaves_detection_norms_initial(tmp_path, caplog):
    source = RegionViT('tiny', det_norm=False)
    official = FAMILY.official('tiny')
    torch.save({'model': official}, tmp_path / 'cls.pth')
    model = RegionViT('tiny')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        model.load_official(str(tmp_path / 'cls.pth'))
    logger.removeHandler(caplog.handler)
    assert sum('det_norm' in r.getMessage() for r in caplog.records) == 1
    assert model.state_dict().keys() - source.state_dict().keys()
    for stage in model.stages:
        assert (stage.det_norm.weight == 1).all()
    torch.save({'model': {k: v for k, v in official.items() if 'peg' not in k and 'mlp' not in k}}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='missing'):
        model.load_official(str(tmp_path / 'x.pth'))


def test_stochastic_depth_draws_once_per_image():
    model = build(drop_path_rate=0.9).train()
    block = model.stages[3].blocks[0]
    x = torch.randn(3, 4, 2, 17, 128)
    masks = masks_of((0, 0))
    torch.manual_seed(0)
    changed = torch.stack([(block(x, masks) != x)[:, :, :, 1:].any(-1).any(-1).flatten(0, 1) for _ in range(40)])
    assert (changed.all(1) | ~changed.any(1)).all()  # in each draw every window of an image changed, or none
    assert 0 < changed[:, 0, 0].sum() < 40
    assert not torch.equal(changed[:, 0, 0], changed[:, 0, 1])


def test_unknown_mask_is_refused():
    with pytest.raises(ValueError, match="'official' or 'exact'"):
        build(window_mask='none')


def test_one_convolution_stem_sizes():
    model = build(arch={**SMALL, 'three_convs': False})
    assert model(image((65, 66)))[0].shape[2:] == (16, 17)
