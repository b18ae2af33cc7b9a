"""Faults of an environment are told in one sentence with their cure, and mmcv finds the operators."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from versions import needs_mmcv_lite

from mmvit import environment

OLD_TORCH = torch.__version__ < '2.6'
FORK = environment.installed_version('onedl-mmengine')


def python(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this environment's Python, with a folder that comes before the installed packages."""
    env = {**os.environ, 'PYTHONWARNINGS': 'default', 'PYTHONPATH': str(path or '')}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd='/')


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / '__init__.py').write_text(code)


def distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def own_mmcv(folder: Path) -> Path:
    """A copy of the installed mmcv's Python part."""
    installed = importlib.util.find_spec('mmcv').submodule_search_locations[0]
    shutil.copytree(installed, folder / 'mmcv', ignore=shutil.ignore_patterns('_ext*', '*.pyc'))
    return folder / 'mmcv'


# The page.


def test_page_of_this_environment():
    page = python('-m', 'mmvit').stdout
    for name in ('mmvit', 'torch', 'torchvision', 'timm', 'numpy'):
        assert f'{name} {environment.installed_version(name)}' in page
    assert 'operators' in page
    assert 'CPU (' in page
    assert ('load only files that you trust' if OLD_TORCH or FORK else 'none found') in page


@pytest.mark.skipif(bool(OLD_TORCH or FORK), reason='loading checkpoints is warned of here')
def test_a_sound_environment_gets_no_warning(recwarn):
    environment.check_environment()
    assert not recwarn.list


def test_another_program_of_a_package_that_imports_mmvit(tmp_path):
    package(tmp_path, 'theirs', 'import mmvit\n')
    (tmp_path / 'theirs' / 'program.py').write_text('import mmvit\nprint(mmvit.models.__name__)\n')
    assert python('-m', 'theirs.program', path=tmp_path).stdout.strip() == 'mmvit.models'


# Faults, as real as they can be made here.


def broken_torchvision(folder):
    package(folder, 'torchvision', "raise RuntimeError('operator torchvision::nms does not exist')")


def no_libgl(folder):
    package(folder, 'cv2', "raise ImportError('libGL.so.1: cannot open shared object file')")


def other_mmcv_too(folder):
    distribution(folder, 'mmcv', '2.1.0')
    distribution(folder, 'mmcv-lite', '2.1.0')


def fork_too(folder):
    distribution(folder, 'mmengine', '0.10.7')
    distribution(folder, 'onedl-mmengine', '0.10.12')


def late_mmcv(folder):
    distribution(folder, 'mmdet', '3.3.0')
    distribution(folder, 'mmcv', '2.2.0')
    distribution(folder, 'mmcv-lite', '2.2.0')


def broken_operators(folder):
    (own_mmcv(folder) / f'_ext{sysconfig.get_config_var("EXT_SUFFIX")}').write_bytes(b'no shared object')


FATAL = {
    'does not match PyTorch .* run `pip uninstall --yes torchvision`, then `pip install torch==': broken_torchvision,
    'OpenCV does not load .*libGL.* `pip install opencv-python-headless`': no_libgl,
}
WARNED = {
    'mmcv and mmcv-lite are both installed .* `pip uninstall --yes mmcv mmcv-lite`': other_mmcv_too,
    'mmengine and onedl-mmengine are both installed': fork_too,
    "mmdet 3.3.0 refuses mmcv 2.2.0: run `pip uninstall .* `pip install 'mmcv-lite>=2.1,<2.2'`": late_mmcv,
    'operators do not load .* run `pip uninstall --yes mmcv': broken_operators,
}


@pytest.mark.slow
@pytest.mark.parametrize('sentence', FATAL | WARNED)
def test_a_fault_is_told_by_import_and_page(sentence, tmp_path):
    (FATAL | WARNED)[sentence](tmp_path)
    imported = python('-c', 'import mmvit', path=tmp_path)
    page = python('-m', 'mmvit', path=tmp_path)
    assert imported.returncode == (sentence in FATAL), imported.stderr
    if sentence in FATAL:
        assert imported.stderr.splitlines()[-1].startswith('RuntimeError: ')
    for text in (imported.stderr, page.stdout):
        assert re.search(sentence, text), text
    assert page.returncode == 0, page.stderr
    assert 'packages' in page.stdout


@pytest.mark.parametrize(
    ('module', 'sentence'),
    [
        ('torchvision', r'torchvision is missing: run `pip install torch==[\d.]+ torchvision`'),
        ('mmengine', r"mmengine is missing: run `pip install 'mmvit\[det\]'`"),
        ('mmcv', r"mmcv is missing: run `pip install 'mmvit\[det\]'`"),
    ],
)
def test_what_is_missing_is_named(module, sentence, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(environment, 'find_spec', lambda name: None if name == module else find(name))
    monkeypatch.setattr(environment.warnings, 'warn', lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match=sentence):
        environment.check_environment()


def test_numpy_2_with_a_torch_for_numpy_1(monkeypatch):
    def refuse(array):
        raise RuntimeError('Numpy is not available')

    monkeypatch.setattr(torch, 'from_numpy', refuse)
    with pytest.warns(UserWarning, match="was built for NumPy 1 .* `pip install 'numpy<2' 'opencv-python[-a-z]*<4"):
        environment.check_environment()


def test_old_torch_gets_a_warning(monkeypatch):
    monkeypatch.setattr(torch, '__version__', torch.torch_version.TorchVersion('2.5.1'))
    with pytest.warns(UserWarning, match='mmengine on PyTorch 2.5.1 can run code'):
        environment.check_environment()


def test_uninstalled_package_has_no_version(monkeypatch):
    def none(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, 'version', none)
    assert environment.installed_versions() == {}


# mmcv finds the operators.

WHERE = "import mmcv.ops, sys; print(sys.modules['mmcv._ext'].__file__); assert 'mmvit' not in sys.modules"


@needs_mmcv_lite
def test_operators_are_found_without_importing_mmvit():
    assert python('-c', WHERE).stdout.strip().endswith(os.path.join('mmvit', 'ops', '__init__.py'))


@needs_mmcv_lite
def test_operators_are_found_after_importing_mmvit():
    code = "import mmvit, mmcv.ops, sys; print(sys.modules['mmcv._ext'].__file__)"
    assert python('-c', code).stdout.strip().endswith(os.path.join('mmvit', 'ops', '__init__.py'))


@needs_mmcv_lite
def test_operators_are_found_in_a_spawned_process(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import multiprocessing\n\n\n'
        'def work(_):\n    import mmcv.ops, sys\n    return sys.modules["mmcv._ext"].__file__\n\n\n'
        'if __name__ == "__main__":\n'
        '    with multiprocessing.get_context("spawn").Pool(1) as pool:\n        print(*pool.map(work, [0]))\n'
    )
    assert python(script).stdout.strip().endswith(os.path.join('mmvit', 'ops', '__init__.py'))


def test_mmcvs_own_operators_come_first(tmp_path):
    folder = own_mmcv(tmp_path)
    (folder / '_ext.py').write_text('def __getattr__(name):\n    return None\n')
    found = python('-c', WHERE, path=tmp_path)
    assert found.stdout.strip() == str(folder / '_ext.py'), found.stderr


def test_python_starts_without_loading_anything_for_it():
    code = 'import os, sys; before = set(sys.modules); import _mmvit_finder; print(set(sys.modules) - before)'
    assert python('-S', '-c', code, path=Path(__file__).parents[1]).stdout.strip() == "{'_mmvit_finder'}"
    code = "import sys; print([name for name in ('mmvit', 'torch', 'mmcv') if name in sys.modules])"
    assert python('-c', code).stdout.strip() == '[]'


def test_the_finder_answers_for_one_name_alone():
    import _mmvit_finder  # noqa: PLC0415

    assert sys.meta_path.count(_mmvit_finder.Finder) == 1
    assert _mmvit_finder.Finder.find_spec('mmcv') is None
    assert _mmvit_finder.Finder.find_spec('mmcv._ext2') is None
