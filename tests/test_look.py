"""What the backbones see: the maps are those of the running network, and the command draws them."""

import argparse
from pathlib import Path

import look as tool
import mmcv
import numpy as np
import pytest
import torch
from commands import run_here
from families import FAMILIES, Family
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from mmvit.looking import look, over_image, stage_maps
from mmvit.models import MPViT, PyramidTNT, RegionViT

SIZES = [(97, 131), (64, 96)]
BY_CLASS = {family.cls: family for family in FAMILIES}
TOOL = Path(tool.__file__)


def build(family: Family, **options):
    """The quick arch with weights large enough for attention that is not flat."""
    model = family.build(**options).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and 'rel_pos' not in name:
            torch.nn.init.normal_(weight, std=2 * weight.shape[1] ** -0.5)
    return model


def picture(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('stage', range(4))
def test_weights_and_values_give_what_the_module_returned(family, stage, size):
    model = build(family)
    for at in ((0, 0), (size[1] - 1, size[0] - 1), (40, 20)):
        views = look(model, picture(size), stage, at)
        for view in views:
            attention = view.attention
            assert attention.returned.std() > 1e-3
            torch.testing.assert_close(attention.rebuilt(), attention.returned, rtol=1e-4, atol=1e-4)
            assert over_image(view.map, view.pixels, size).shape == size


def test_maps_are_the_weights():
    """Not only the weights are true: the maps have them in the places of their tokens."""
    size, stage, at = (97, 131), 1, (70, 50)
    views = look(build(BY_CLASS[MPViT]), picture(size), stage, at)
    assert len(views) == 3
    for view in views:
        assert view.map.shape == (13, 17)
        assert view.query == (64, 48, 72, 56)
        torch.testing.assert_close(view.map.flatten(), view.attention.weights[0, :, 0].sum(0))
    (view,) = look(build(BY_CLASS[RegionViT]), picture(size), stage, at)
    assert view.map.shape == (13, 17)
    # 131 pixels are 9 patches of 16 and the regions' map of stage 1 has half of their columns: window (1, 2).
    columns = -(-(131 // 16 + 1) // 2)
    window = view.attention.weights[columns + 2, :, 0, 1:].mean(0).view(4, 4)
    torch.testing.assert_close(view.map[4:8, 8:12], window)
    words, word, sentences = look(build(BY_CLASS[PyramidTNT]), picture(size), stage, at)
    assert words.map.shape == word.map.shape == (28, 36)
    assert sentences.map.shape == (3, 4)
    index = 50 // 16 * 9 + 70 // 16
    in_sentence = word.attention.weights[index, :, 50 % 16 // 4 * 4 + 70 % 16 // 4].mean(0).view(4, 4)
    torch.testing.assert_close(word.map[12:16, 16:20], in_sentence)
    assert word.map.sum().item() == pytest.approx(1)
    torch.testing.assert_close(words.map[12:16, 16:20].flatten(), words.attention.weights[index].mean((0, 1)))


def single_out(linear: torch.nn.Linear, first: int, last: int, channel: int, strength: float) -> None:
    """Let rows ``first`` to ``last`` of a projection be ``strength`` times one channel of the token."""
    with torch.no_grad():
        linear.weight[first:last] = 0
        linear.weight[first:last, channel] = strength


def set_channel(place: tuple[int, int], channel: int):
    """A hook that makes a token at this place of a map (1, C, H, W) the only one with this channel."""

    def change(module, inputs):
        x = torch.zeros_like(inputs[0])
        x[:, 1 - channel] = 1
        x[:, 1 - channel, place[0], place[1]] = 0
        x[:, channel, place[0], place[1]] = 1
        return (x, *inputs[1:])

    return change


def test_mpvit_finds_the_token_that_the_keys_single_out():
    model = build(BY_CLASS[MPViT])
    path = model.stages[1].paths[0]
    for conv in [path.cpe.conv, *path.crpe.convs]:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    attention = path.blocks[-1].attn
    path.blocks = path.blocks[-1:]
    width = attention.qkv.in_features
    single_out(attention.qkv, width, 2 * width, 0, 50.0)  # keys: large at the token alone
    torch.nn.init.zeros_(attention.qkv.bias)
    with torch.no_grad():
        attention.qkv.bias[:width] = 1  # queries: all ones
        attention.qkv.weight[:width] = 0
    path.register_forward_pre_hook(set_channel((3, 5), 0))
    view = look(model, picture((97, 131)), 1, (0, 0))[0]
    expected = torch.zeros(13, 17)
    expected[3, 5] = 8 * (width // 8) ** 0.5  # 8 heads, in each scale * the number of channels
    torch.testing.assert_close(view.map, expected, atol=1e-3, rtol=1e-3)


def test_regionvit_finds_the_tokens_that_the_keys_single_out():
    model = build(BY_CLASS[RegionViT])
    stage = model.stages[0]
    attention = stage.blocks[-1].attn
    width = attention.qkv.in_features
    torch.nn.init.zeros_(attention.rel_pos_table)
    torch.nn.init.zeros_(attention.qkv.bias)
    single_out(attention.qkv, width, 2 * width, 0, 50.0)
    with torch.no_grad():
        attention.qkv.bias[:width] = 1
        attention.qkv.weight[:width] = 0

    def change(module, inputs):
        windows = torch.zeros_like(inputs[0])
        windows[..., 1] = 1
        windows[..., 7, :2] = torch.tensor([1.0, 0.0])  # word 6 behind the region: row 1, column 2
        return (windows, *inputs[1:])

    stage.blocks[-1].register_forward_pre_hook(change)
    (view,) = look(model, picture((64, 96)), 0, (0, 0))
    expected = torch.zeros(4, 4)
    expected[1, 2] = 1
    torch.testing.assert_close(view.map, expected.repeat(4, 6), atol=1e-3, rtol=1e-3)


def test_pyramid_tnt_finds_the_word_that_the_keys_single_out():
    model = build(BY_CLASS[PyramidTNT])
    attention = model.stages[0].blocks[-1].words
    if attention is None:
        attention = model.stages[0].blocks[0].words
    width = attention.attn.q.in_features
    single_out(attention.attn.kv, 0, width, 0, 50.0)
    with torch.no_grad():
        attention.attn.q.weight[:] = 1  # of tokens whose channels add up to more than 0

    def change(module, inputs):
        grids = torch.zeros_like(inputs[0])
        grids[..., 1] = 1
        grids[:, 2, 3, :2] = torch.tensor([1.0, 0.0])
        return (grids, *inputs[1:])

    attention.attn.register_forward_pre_hook(change)
    words, word, _ = look(model, picture((64, 96)), 0, (40, 20))
    expected = torch.zeros(4, 4)
    expected[2, 3] = 1
    torch.testing.assert_close(words.map, expected.repeat(8, 12), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(word.map[8:12, 20:24], expected, atol=1e-3, rtol=1e-3)
    assert word.map.sum().item() == pytest.approx(1)


@pytest.mark.parametrize('size', SIZES)
def test_stage_maps_are_those_of_the_network(family, size):
    model = build(family, out_indices=(1, 3))
    with torch.no_grad():
        maps = model(picture(size))
    found = stage_maps(model, picture(size))
    assert list(found) == [1, 3]
    for values, features in zip(found.values(), maps, strict=True):
        torch.testing.assert_close(values, features[0].pow(2).mean(0).sqrt(), rtol=1e-3, atol=1e-4)


def test_looking_leaves_nothing_behind(family):
    model = build(family)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    views = look(model, picture((64, 96)), 0, (1, 1))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(view.map.requires_grad for view in views)


@pytest.fixture
def photo(tmp_path) -> Path:
    noise = torch.randint(256, (97, 131, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


@pytest.mark.parametrize('name', ['mpvit_t', 'regionvit_tiny', 'pyramid_tnt_t'])
def test_command_draws(name, photo, tmp_path, monkeypatch, capsys):
    family = name.rpartition('_')[0]
    out = tmp_path / 'pictures'
    options = ('--stage', 2, '--at', '130,96', '--longest', 100, '--out', out)
    run_here(monkeypatch, TOOL, photo, '--backbone', name, *options)
    printed = capsys.readouterr().out
    assert 'weights are random' in printed
    for path in (out / 'stages.png', out / f'{family}.png'):
        assert str(path) in printed
        (tmp_path / 'first').mkdir(exist_ok=True)
        path.rename(tmp_path / 'first' / path.name)
    run_here(monkeypatch, TOOL, photo, '--backbone', name, *options[2:], '--stage', 1)
    first, second = (np.asarray(Image.open(folder / f'{family}.png')) for folder in (tmp_path / 'first', out))
    assert first.shape != second.shape or (first != second).any()


def test_photograph_is_turned_upright(tmp_path):
    """As a camera marks it, and as mmcv reads it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)).save(tmp_path / 'a.png', exif=exif)
    read = tool.read_photo(tmp_path / 'a.png', None, 640)[0]
    assert np.array_equal(read, mmcv.imread(tmp_path / 'a.png', channel_order='rgb'))
    assert read.shape == (60, 40, 3)


def test_command_takes_a_config_and_its_weights(photo, tmp_path, monkeypatch, capsys):
    config = Config.fromfile('configs/maskrcnn_mpvit_t_digits.py')
    torch.manual_seed(0)
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    options = ('--config', 'configs/maskrcnn_mpvit_t_digits.py', '--out', tmp_path / 'a')
    run_here(monkeypatch, TOOL, photo, *options, '--checkpoint', tmp_path / 'model.pth')
    assert 'random' not in capsys.readouterr().out
    assert (tmp_path / 'a' / 'mpvit.png').exists()


@pytest.mark.parametrize('is_rgb', [True, False])
def test_the_network_gets_what_its_preprocessor_makes(is_rgb, photo, tmp_path):
    config = Config.fromfile('configs/maskrcnn_mpvit_t_digits.py')
    config.model.data_preprocessor.update(bgr_to_rgb=is_rgb, mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    config.dump(tmp_path / 'config.py')
    normalise = tool.load(argparse.Namespace(config=str(tmp_path / 'config.py'), checkpoint=None))[1]
    pixels = np.asarray(Image.open(photo).convert('RGB'))
    height, width = pixels.shape[:2]
    bgr = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
    expected = MODELS.build(config.model.data_preprocessor)({'inputs': [bgr]})['inputs'][..., :height, :width]
    torch.testing.assert_close(normalise(pixels), expected)


def test_command_takes_the_weights_of_a_backbone(photo, tmp_path, monkeypatch, capsys):
    torch.save(MPViT('tiny').state_dict(), tmp_path / 'weights.pth')
    options = ('--backbone', 'mpvit_t', '--checkpoint', tmp_path / 'weights.pth', '--out', tmp_path / 'a')
    run_here(monkeypatch, TOOL, photo, *options)
    assert 'random' not in capsys.readouterr().out


FOREIGN = "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n"


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('missing.png',), 'there is no image missing.png'),
        (('text.png',), 'text.png is not an image'),
        (('cut.png',), 'cut.png cannot be read to its end'),
        (('photo.png', '--at', '131,0'), 'the position 131,0 is outside of the image of 131x97 pixels'),
        (('photo.png', '--at', '0,-1'), 'the position 0,-1 is outside'),
        (('photo.png', '--stage', '4', '--backbone', 'mpvit_t'), 'has the stages 0 .. 3, not 4'),
        (('photo.png', '--backbone', 'resnet_50'), 'there is no backbone resnet_50: take one of mpvit_b'),
        (('photo.png', '--backbone', 'mpvit_t', '--checkpoint', 'none.pth'), 'none.pth'),
        (('photo.png', '--config', 'foreign.py'), 'the backbone of foreign.py is ResNet, and not of mmvit'),
        (('photo.png', '--backbone', 'mpvit_t', '--longest', '20'), 'takes images of 32 pixels or more'),
    ],
)
def test_errors_say_what_is_wrong(options, message, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('text.png').write_text('no image')
    Path('cut.png').write_bytes(photo.read_bytes()[:3000])
    Path('foreign.py').write_text(FOREIGN)
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, TOOL, *options)
    assert str(stopped.value).startswith('nothing drawn: ')
    assert message in str(stopped.value)
    assert not Path('look').exists()


@pytest.mark.parametrize('position', ['1', 'a,b', '1,2,3'])
def test_positions_are_two_numbers(position, photo, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_here(monkeypatch, TOOL, photo, '--at', position)
    assert 'is not X,Y in pixels' in capsys.readouterr().err
