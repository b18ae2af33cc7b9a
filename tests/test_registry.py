"""The backbones' names, as configs of mmdet, mmseg and plain mmengine find them, each in a fresh process."""

import subprocess
import sys

import pytest
from families import FAMILIES
from mmengine.config import Config
from mmengine.registry import MODELS

BACKBONES = [(family.cls.__name__, family.small) for family in FAMILIES]
SCOPED = """
import sys
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from {package}.registry import MODELS
DefaultScope.get_instance('test', scope_name='{package}')
assert 'mmvit' not in sys.modules
for name, arch in {backbones}:
    print(type(MODELS.build(dict(type='mmvit.' + name, arch=arch))).__module__)
assert OPTIM_WRAPPER_CONSTRUCTORS.get('mmvit.LayerDecayOptimWrapperConstructor')
"""
CUSTOM_IMPORTS = """
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from {package}.registry import MODELS
config = Config(dict(custom_imports=dict(imports=['mmvit'])))
import_modules_from_strings(**config.custom_imports)
for name, arch in {backbones}:
    print(type(MODELS.build(dict(type=name, arch=arch))).__module__)
"""
HIDE_MMCV = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == 'mmcv' else find(name, *args)
from mmengine.registry import MODELS
try:
    {use}
except RuntimeError as error:
    print(error)
"""


def run(code: str) -> str:
    command = [sys.executable, '-W', 'ignore', '-c', code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize(
    ('package', 'code'),
    [
        pytest.param(package, code, id=f'{package}-{way}', marks=[pytest.mark.slow] * (package != 'mmengine' or slow))
        for package in ('mmdet', 'mmseg', 'mmengine')
        for way, code, slow in (('scoped', SCOPED, False), ('custom_imports', CUSTOM_IMPORTS, True))
    ],
)
def test_found_by_name(package, code):
    modules = run(code.format(package=package, backbones=BACKBONES)).split()
    assert modules[-len(FAMILIES) :] == [family.cls.__module__ for family in FAMILIES]


def test_pure_python_config(family, tmp_path):
    name = family.cls.__name__
    (tmp_path / 'config.py').write_text(
        f'from mmvit.models import {name}\nbackbone = dict(type={name}, arch={family.small!r})\n'
    )
    config = Config.fromfile(tmp_path / 'config.py', lazy_import=True)
    assert isinstance(MODELS.build(config.backbone), family.cls)
    assert f'mmvit.models.{name}' in config.pretty_text
    config.dump(tmp_path / 'dumped.py')
    assert isinstance(MODELS.build(Config.fromfile(tmp_path / 'dumped.py').backbone), family.cls)


@pytest.mark.parametrize(
    'use',
    [
        'import mmvit',
        pytest.param("MODELS.build(dict(type='mmvit.MPViT', arch='tiny'))", marks=pytest.mark.slow, id='config'),
    ],
)
def test_without_mmcv_one_sentence_says_so(use):
    assert 'mmvit[lite]' in run(HIDE_MMCV.format(use=use))
