"""Weights that are not the backbone's, or not all of them: what each loader takes, refuses and says."""

import logging

import pytest
import torch
from families import FAMILIES
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict
from torch import nn

from mmvit.models import base


class Detector(BaseModel):
    """A backbone and a head."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(2, 2)

    def forward(self, inputs):
        return self.backbone(inputs)


def by_mmengine(model, weights, tmp_path):
    load_state_dict(model, weights)


def from_a_file(model, weights, tmp_path):
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    load_checkpoint(model, str(tmp_path / 'weights.pth'))


def into_averages(model, weights, tmp_path):
    """As mmengine's ``EMAHook`` loads a file without averages."""
    averages = ExponentialMovingAverage(model)
    load_state_dict(averages.module, weights)
    model.load_state_dict(averages.module.state_dict())


def by_pytorch(model, weights, tmp_path):
    model.load_state_dict(weights)


def by_pytorch_what_fits(model, weights, tmp_path):
    model.load_state_dict(weights, strict=False)


OF_MMENGINE = pytest.mark.parametrize('load', [by_mmengine, from_a_file, into_averages])
ALL = pytest.mark.parametrize('load', [by_mmengine, from_a_file, into_averages, by_pytorch, by_pytorch_what_fits])


def initialised(model, file, **options):
    """A model that starts from a file, as a config says it."""
    torch.save(dict(state_dict=options.pop('weights')), file)
    model.init_cfg = dict(type='Pretrained', checkpoint=str(file), **options)
    model.init_weights()
    return model


def equal(model, weights):
    return all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@ALL
def test_own_weights(family, load, tmp_path):
    weights = Detector(family.build()).state_dict()
    model = Detector(family.cls(family.small))
    load(model, weights, tmp_path)
    assert equal(model, weights)


@ALL
def test_weights_of_another_family(family, load, tmp_path):
    other = FAMILIES[FAMILIES.index(family) - 1]
    weights = Detector(other.cls(other.smallest)).state_dict()
    name, their_name = family.cls.__name__, other.cls.__name__
    whose = rf"'backbone\.' are not of this {name}: they are those of {their_name} '{other.smallest}'\."
    with pytest.raises(RuntimeError, match=whose):
        load(Detector(family.build()), weights, tmp_path)


@OF_MMENGINE
def test_weights_of_another_arch(family, load, tmp_path):
    first, second, *_ = family.parameters
    model = Detector(family.cls(first))
    weights = Detector(family.cls(second)).state_dict()
    with pytest.raises(
        RuntimeError, match=rf"do not fill this .*those of {family.cls.__name__} '{second}'\. .*partial_weights=True"
    ):
        load(model, weights, tmp_path)


@OF_MMENGINE
def test_weights_that_are_partly_missing(family, load, tmp_path):
    weights = {key: value for key, value in Detector(family.build()).state_dict().items() if '.stages.3.' not in key}
    with pytest.raises(RuntimeError, match=r'do not fill this .*strict=False\).* missing: \d+ keys: stages\.3\.'):
        load(Detector(family.build()), weights, tmp_path)


def test_what_fits_is_taken_where_that_was_asked_for(family, tmp_path):
    whole = Detector(family.build(drop_path_rate=0.1))
    weights = {key: value + 1 for key, value in whole.state_dict().items() if '.stages.3.' not in key}
    kept = {key: value.clone() for key, value in whole.state_dict().items() if key not in weights}
    result = whole.load_state_dict(weights, strict=False)
    missing = [key for key in kept if 'num_batches' not in key]  # of which PyTorch says nothing
    assert result.missing_keys == missing
    assert equal(whole, weights | kept)
    allowed = Detector(family.build())
    allowed.backbone.partial_weights = True
    from_a_file(allowed, weights, tmp_path)
    assert equal(allowed, weights | kept)


def test_more_weights_than_the_backbone_has(family, tmp_path):
    """A file of all stages, for a backbone of two."""
    weights = family.build().state_dict()
    part = family.cls(family.small, out_indices=(0, 1))
    from_a_file(part, weights, tmp_path)
    assert equal(part, weights)


def test_a_file_without_a_backbone(family, tmp_path, monkeypatch):
    model = Detector(family.build())
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    said = []
    monkeypatch.setattr(base, 'print_log', lambda *words: said.append(words))
    from_a_file(model, {'head.weight': torch.ones(2, 2), 'head.bias': torch.ones(2)}, tmp_path)
    assert said == [
        (f"{family.cls.__name__} keeps its weights: there are none under 'backbone.'", 'current', logging.WARNING)
    ]
    assert torch.equal(model.head.weight, torch.ones(2, 2))
    assert equal(model.backbone, before)


def test_counts_of_batches_may_be_missing(normed_family, tmp_path):
    weights = normed_family.build().state_dict()
    from_a_file(normed_family.build(), {k: v for k, v in weights.items() if 'num_batches' not in k}, tmp_path)


def test_backbones_that_start_from_a_file(family, tmp_path):
    weights = Detector(family.build()).state_dict()
    own = {key.removeprefix('backbone.'): value for key, value in weights.items()}
    file = tmp_path / 'weights.pth'
    assert equal(initialised(family.cls(family.small), file, weights=weights, prefix='backbone.'), own)
    with pytest.raises(
        RuntimeError, match=rf"in this file are not of this .* those of {family.cls.__name__} '\w+' under 'backbone\.'"
    ):
        initialised(family.cls(family.small), file, weights=weights)
    official = family.official(next(iter(family.layouts()))) | {'unknown.weight': torch.ones(1)}
    with pytest.raises(
        RuntimeError, match=rf"{family.cls.__name__} '\w+' with its official names, which mmvit.OfficialWeights takes"
    ):
        initialised(family.cls(family.small), file, weights=official)


def test_weights_that_nobody_here_knows():
    model = Detector(FAMILIES[0].build())
    with pytest.raises(RuntimeError, match=r'those of no backbone of mmvit \(1 keys: layer1\.weight\)'):
        load_state_dict(model, {'backbone.layer1.weight': torch.ones(1)})
