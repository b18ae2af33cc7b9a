"""The set-up stops at once, with one sentence, where it cannot succeed."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

import bootstrap


def free(count):
    return lambda path: namedtuple('Usage', 'free')(count)


BAD_MACHINES = {
    'Python 3.11': (sys, 'version_info', (3, 12, 1)),
    'headers': (sysconfig, 'get_path', lambda name: '/nowhere'),
    'C\\+\\+ compiler': (shutil, 'which', lambda name: None),
    'venv module': (bootstrap, 'find_spec', lambda name: None),
    'GB free': (shutil, 'disk_usage', free(1e9)),
    'Linux only': (sys, 'platform', 'win32'),
}


@pytest.mark.parametrize('sentence', BAD_MACHINES)
def test_machine_that_does_not_fit(sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, 'CACHE', tmp_path / 'cache')
    # This machine need not fit itself: an image has no compiler left.
    (tmp_path / 'Python.h').touch()
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: tmp_path)
    monkeypatch.setattr(shutil, 'which', lambda name: name)
    monkeypatch.setattr(shutil, 'disk_usage', free(100e9))
    bootstrap.check_machine(tmp_path / 'venv')
    monkeypatch.setattr(*BAD_MACHINES[sentence])
    with pytest.raises(SystemExit, match=sentence):
        bootstrap.check_machine(tmp_path / 'venv')


def this_venv():
    return Path(sys.executable).parents[1]


def test_this_environment_is_as_pinned():
    bootstrap.check_environment(this_venv())


def test_unmet_pin_is_named(tmp_path, monkeypatch):
    (tmp_path / 'requirements.txt').write_text('einops==0.0.1\nabsent-package==1\n')
    monkeypatch.setattr(bootstrap, 'REQUIREMENTS', tmp_path / 'requirements.txt')
    with pytest.raises(SystemExit, match=r'einops==0.0.1 \(found .*absent-package==1 \(found none'):
        bootstrap.check_environment(this_venv())


def test_mmcv_without_ops_is_refused(tmp_path, monkeypatch):
    """Both where it is built and where it is found installed."""

    def build_without_ops(command, **kwargs):
        with zipfile.ZipFile(Path(command[-1]) / 'mmcv-2.1.0-py3-none-any.whl', 'w') as wheel:
            wheel.writestr('mmcv/__init__.py', '')
        return real(['true'], **kwargs)

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', build_without_ops)
    with pytest.raises(SystemExit, match='without its compiled ops'):
        bootstrap.build_mmcv(this_venv(), '2.1.0', tmp_path)
    assert not list(tmp_path.glob('*.whl'))
    monkeypatch.undo()

    def no_ops(venv, code):
        raise subprocess.CalledProcessError(1, 'python')

    monkeypatch.setattr(bootstrap, 'output', no_ops)
    with pytest.raises(SystemExit, match='no compiled ops'):
        bootstrap.check_environment(this_venv())


def test_pins_name_no_registry():
    text = bootstrap.REQUIREMENTS.read_text()
    assert '://' not in text
    assert bootstrap.read_pins()['torch'] == '2.13.0'
