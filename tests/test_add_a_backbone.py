"""The file and the line of docs/add_a_backbone.md make a new backbone of a copy of the package."""

import re
import shutil
import sys
from pathlib import Path
from shutil import which

import pytest
from commands import run
from versions import needs_torch

SNIPPET = re.compile(r'```python title="(.+?)"\n(.*?)```', re.DOTALL)
SNIPPETS = dict(SNIPPET.findall(Path('docs/add_a_backbone.md').read_text()))
FILE, LINE = 'mmvit/models/resnet.py', 'mmvit/models/families.py'
# What the package derives from the family, and torchvision's network as the reference.
DERIVED = """
import timm
from torchvision.models import resnet18
from mmvit.conversion import recognise_checkpoint
from mmvit.models import ResNet
from mmvit.sharding import wrap_blocks

reference = resnet18().eval()
torch.save(reference.state_dict(), 'resnet18.pth')
classifier = timm.create_model('mmvit_resnet_18', checkpoint_path='resnet18.pth').eval()
torch.testing.assert_close(classifier(images), reference(images))
backbone.load_official('resnet18.pth')
weights = ResNet.convert_official(reference.state_dict()).weights
assert all(torch.equal(value, weights[name]) for name, value in backbone.state_dict().items())
assert ResNet.to_official(weights).keys() == {k for k in reference.state_dict() if not k.startswith('fc.')}
assert str(recognise_checkpoint(reference.state_dict())) == "a classifier with ResNet '18'"
assert sum(wrap_blocks(module, False, 0) for module in backbone.modules()) == 8
"""


@pytest.fixture(scope='module')
def package(tmp_path_factory) -> Path:
    """A folder with a copy of mmvit that has the page's backbone."""
    folder = tmp_path_factory.mktemp('package')
    shutil.copytree('mmvit', folder / 'mmvit', ignore=shutil.ignore_patterns('__pycache__'))
    (folder / FILE).write_text(SNIPPETS[FILE])
    families = (folder / LINE).read_text()
    last_import = 'from mmvit.registry import MODELS\n'
    (folder / LINE).write_text(families.replace(last_import, SNIPPETS[LINE] + last_import))
    return folder


def execute(package: Path, *snippets: str) -> None:
    here = f'assert mmvit.__file__.startswith({str(package)!r})\n'
    run(sys.executable, '-c', '\n'.join([*snippets, here]), cwd=package)


def test_it_trains_and_the_package_knows_it(package):
    execute(package, SNIPPETS['train'], DERIVED)


@needs_torch('2.6', 'torch.export')
def test_it_exports(package):
    execute(package, SNIPPETS['train'], SNIPPETS['export'])


@pytest.mark.skipif(which('ruff') is None, reason='the image has no linters')
def test_the_file_has_the_form_of_the_others(package):
    assert len(SNIPPETS[LINE].splitlines()) == 1
    run('ruff', 'check', '--config', Path('pyproject.toml').resolve(), package / FILE, package / LINE)
    run('ruff', 'format', '--check', '--config', Path('pyproject.toml').resolve(), package / FILE, package / LINE)
