"""The benchmark of exported models: its rows are there. That something is fast is no test's business."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from versions import needs_torch

pytest.importorskip('onnx', reason="needs the extra 'deploy'")
pytest.importorskip('onnxruntime', reason="needs the extra 'deploy'")

import benchmark_deploy

pytestmark = needs_torch('2.13', 'export')
MPVIT = next(family for family in FAMILIES if family.name == 'mpvit')


def small():
    """A model of one block a stage, for tools/benchmark_deploy.py."""
    return MPVIT.build(arch=MPVIT.shallow)


def broken():
    raise ValueError('no such weights')


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, 'argv', ['benchmark_deploy.py', *map(str, words)])
    benchmark_deploy.main()


@pytest.mark.slow
def test_each_form_has_a_row_and_a_failure_is_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip('nncf', reason="needs the extra 'openvino'")
    path = tmp_path / 'rows.json'
    forms = ['torch', 'onnxruntime@int8', 'openvino@int8']
    models = ['test_benchmark_deploy:small', 'test_benchmark_deploy:broken']
    options = ('--forms', *forms, '--size', '64x96', '--repeats', 2, '--threads', 1, '--json', path)
    with pytest.raises(SystemExit, match='3 of 6 measurements failed'):
        command(monkeypatch, *models, *options)
    rows = json.loads(path.read_text())['results']
    assert [(row['model'], row['form']) for row in rows] == [(model, form) for model in models for form in forms]
    for row in rows[:3]:
        assert (len(row['times']), row['failure']) == (2, '')
        assert min(row['times']) > 0
        assert row['memory'] > 0
        assert (row['file'] > 0) == (row['form'] != 'torch')
    assert all(row['failure'] == 'ValueError: no such weights' for row in rows[3:])
    assert '| ratio |' in capsys.readouterr().out


@pytest.mark.slow
def test_the_backbone_of_another_package_s_config(tmp_path, monkeypatch):
    path = tmp_path / 'rows.json'
    options = ('--forms', 'onnxruntime', '--size', '64x96', '--repeats', 1, '--threads', 1, '--json', path)
    command(monkeypatch, 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', *options)
    (row,) = json.loads(path.read_text())['results']
    assert (len(row['times']), row['part']) == (1, 'backbone')


@pytest.mark.slow
def test_a_whole_detector(tmp_path, monkeypatch):
    pytest.importorskip('openvino', reason="needs the extra 'openvino'")
    path = tmp_path / 'rows.json'
    options = ('--part', 'model', '--forms', 'openvino', '--size', '96x64', '--repeats', 1, '--threads', 1)
    command(monkeypatch, 'configs/maskrcnn_pyramid_tnt_t_digits.py', *options, '--json', path)
    (row,) = json.loads(path.read_text())['results']
    assert (len(row['times']), row['part'], row['size']) == (1, 'model', [96, 64])


@pytest.mark.parametrize(
    ('form', 'expected'),
    [
        ('onnxruntime', ('onnxruntime', '0.onnx', 2, 'f32')),
        ('onnxruntime@int8', ('onnxruntime', '0_int8.onnx', 2, 'f32')),
        ('openvino', ('openvino', '0.onnx', 2, 'f32')),
        ('openvino@bf16', ('openvino', '0.onnx', 2, 'bf16')),
        ('openvino@int8', ('openvino', '0.xml', 2, 'f32')),
        ('openvino@int8+bf16', ('openvino', '0.xml', 2, 'bf16')),
    ],
)
def test_each_form_has_its_file_and_precision(form, expected, monkeypatch):
    started = []

    def start(engine, *args):
        started.append((engine, *args))
        return lambda image: {}, None

    for engine in benchmark_deploy.ENGINES:
        monkeypatch.setitem(benchmark_deploy.ENGINES, engine, partial(start, engine))
    job = benchmark_deploy.Job('mpvit_tiny', size=(64, 96), threads=2, form=form, recorded=Path('0.onnx'))
    assert benchmark_deploy.in_engine(job)() == {}
    assert started == [expected]


def test_of_a_compiled_model_the_backbone_is_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda model, dynamic: compiled.append(model) or model)
    monkeypatch.setattr(torch, 'set_num_threads', lambda threads: None)
    name = 'configs/maskrcnn_pyramid_tnt_t_digits.py'
    job = benchmark_deploy.Job(name, part='model', size=(64, 96), threads=1, form='torch@compile', repeats=1)
    assert len(benchmark_deploy.measure(job).times) == 1
    assert [type(model).__name__ for model in compiled] == ['PyramidTNT']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['mpvit_smal'], "no model 'mpvit_smal'"),
        (['timm:resnet18'], 'models of timm are not exported here'),
        (['mpvit_tiny', '--part', 'model'], 'mpvit_tiny is a backbone: --part model needs a config'),
        (['test_benchmark_deploy:small', '--part', 'model'], 'small: --part model needs a config'),
        (['mpvit_tiny', '--repeats', 0], 'must be at least 1'),
    ],
)
def test_a_bad_command_ends_before_anything_runs(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit, match='2'):
        command(monkeypatch, *words)
    assert message in capsys.readouterr().err
