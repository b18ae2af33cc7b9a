"""The benchmark of exported models: its rows are there. That something is fast is no test's business."""

import json
from pathlib import Path

import pytest
from commands import run_here
from families import FAMILIES
from versions import needs_torch

pytestmark = needs_torch('2.13', 'export')
pytest.importorskip('onnxruntime')
MPVIT = next(family for family in FAMILIES if family.name == 'mpvit')


def small():
    """A model of one block a stage, for tools/benchmark_deploy.py."""
    return MPVIT.build(arch=MPVIT.shallow)


def broken():
    raise ValueError('no such weights')


@pytest.mark.slow
def test_each_form_has_a_row_and_a_failure_is_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip('openvino')
    tool, path = Path('tools/benchmark_deploy.py'), tmp_path / 'rows.json'
    forms = ['torch', 'onnxruntime', 'openvino@int8']
    models = ['test_benchmark_deploy:small', 'test_benchmark_deploy:broken']
    command = (*models, '--forms', *forms, '--size', '64x96', '--repeats', 2, '--threads', 1, '--json', path)
    with pytest.raises(SystemExit, match='3 of 6 measurements failed'):
        run_here(monkeypatch, tool, *command)
    rows = json.loads(path.read_text())['results']
    assert [(row['model'], row['form']) for row in rows] == [(model, form) for model in models for form in forms]
    for row in rows[:3]:
        assert (len(row['times']), row['failure']) == (2, '')
        assert min(row['times']) > 0
        assert row['memory'] > 0
        assert (row['file'] > 0) == (row['form'] != 'torch')
    assert rows[1]['file'] != rows[2]['file']
    assert all(row['failure'] == 'ValueError: no such weights' for row in rows[3:])
    assert '| ratio |' in capsys.readouterr().out
