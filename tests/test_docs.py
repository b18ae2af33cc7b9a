"""README and the documentation: snippets and commands run, links lead somewhere, the site builds.

A code block that cannot run here has a comment above it. ``<!-- run by: tests/test_x.py::test_y -->`` names the test
that runs its commands with other options. ``<!-- not run: REASON -->`` skips it, so pytest's output lists these.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from commands import run
from markdown.extensions.toc import slugify
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, Registry, init_default_scope

import mmvit
from mmvit.environment import installed_version
from mmvit.models import MPViT

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')] + sorted(DOCS.rglob('*.md'))
MARK = re.compile(r'<!-- (run by|not run): (.+?) -->\s*')
# A file in the repository that a command names.
FILE = re.compile(r'(configs|docker|tests|tools)/\S+')


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: Path
    line: int
    language: str
    code: str
    mark: re.Match[str] | None  # of the comment above it

    def __str__(self) -> str:
        return f'{self.page.relative_to(ROOT)}:{self.line}'

    @property
    def is_run_elsewhere(self) -> bool:
        return self.mark is not None and self.mark[1] == 'run by'

    def commands(self) -> Iterator[list[str]]:
        """The words of each command."""
        for line in self.code.replace('\\\n', ' ').splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def parse(page: Path) -> list[Token]:
    return MarkdownIt().enable('table').parse(page.read_text())


def language(fence: Token) -> str:
    return fence.info.partition(' ')[0]


def blocks(page: Path) -> list[Block]:
    tokens = parse(page)
    above = [None, *tokens]
    return [
        Block(
            page, token.map[0] + 1, language(token), token.content, MARK.fullmatch(before.content) if before else None
        )
        for before, token in zip(above, tokens, strict=False)
        if token.type == 'fence' and token.map
    ]


BLOCKS = {page: blocks(page) for page in PAGES}
RUN_ELSEWHERE = [block for found in BLOCKS.values() for block in found if block.is_run_elsewhere]
COMMANDS = [block for found in BLOCKS.values() for block in found if block.language == 'bash']
SNIPPETS = [page for page, found in BLOCKS.items() if any(block.language == 'python' for block in found)]


@pytest.fixture(scope='session')
def checkout(tmp_path_factory) -> Path:
    """A folder that looks like a checkout, with the files of weights that the pages speak of."""
    folder = tmp_path_factory.mktemp('checkout')
    for name in ('configs', 'docker', 'mmvit', 'tests', 'tools', 'model-index.yml'):
        (folder / name).symlink_to(ROOT / name)
    for arch, name in (('small', 'mpvit_small.pth'), ('tiny', 'classifier.pth')):
        torch.save({'model': MPViT.to_official(MPViT(arch).state_dict())}, folder / name)
    return folder


@pytest.fixture(params=SNIPPETS, ids=lambda page: str(page.relative_to(ROOT)))
def snippets(request) -> list[Block]:
    return [block for block in BLOCKS[request.param] if block.language in ('python', 'text')]


def test_snippets_run(snippets, checkout, monkeypatch):
    """Those of a page share their names. A text block is what the snippet before it prints."""
    monkeypatch.chdir(checkout)
    names: dict = {}
    printed = StringIO()
    for block in snippets:
        if block.language == 'text':
            assert printed.getvalue() == block.code, block
        elif block.mark is None:
            printed = StringIO()
            if block.code.startswith('_base_'):
                check_config(read_config(block, checkout))
                continue
            with redirect_stdout(printed):
                exec(compile('\n' * block.line + block.code, block.page, 'exec'), names)


def read_config(block: Block, folder: Path) -> Config:
    path = folder / f'line_{block.line}.py'
    path.write_text(block.code)
    return Config.fromfile(path)


def check_config(config: Config) -> None:
    """Build its model with its backbone's weights, its optimizer and its hooks."""
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    model.backbone.init_weights()
    build_optim_wrapper(model, config.optim_wrapper)
    for hook in config.get('custom_hooks', []):
        if hook['type'] != 'mmvit.CompileBackboneHook' or torch.__version__ >= '2.13':
            HOOKS.build(hook)


@pytest.mark.slow
@pytest.mark.parametrize('block', [block for block in COMMANDS if not block.is_run_elsewhere], ids=str)
def test_commands_run(block, checkout):
    if block.mark:
        pytest.skip(f'{block} is not run: {block.mark[2]}')
    run('bash', '-euo', 'pipefail', '-c', block.code, cwd=checkout)


@pytest.mark.parametrize('block', COMMANDS, ids=str)
def test_commands_name_what_there_is(block, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    targets = re.findall(r'^([\w-]+)(?=[\w\s-]*:)', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    made: set[str] = set()  # folders that commands before make
    for words in block.commands():
        made.update(words[words.index('--out') + 1 :][:1] if '--out' in words else ())
        assert not [word for word in words if FILE.fullmatch(word) and not Path(word).exists()]
        if words[0] == 'make':
            assert {word for word in words[1:] if '=' not in word} <= set(targets)
        if words[:2] in (['mim', 'train'], ['mim', 'test']):
            if words[2] == 'mmseg' and installed_version('mmsegmentation') is None:
                pytest.skip('configs that inherit from mmseg:: do not find onedl-mmsegmentation')
            parser = argparse.ArgumentParser()
            parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
            options, others = parser.parse_known_args(words[3:])
            if Path(others[0]).parts[0] in made:
                continue
            config = Config.fromfile(others[0])
            if options.cfg_options:  # tests/test_configs.py has the configs as they are
                config.merge_from_dict(options.cfg_options)
                check_config(config)


@pytest.mark.parametrize('block', RUN_ELSEWHERE, ids=str)
def test_tests_that_run_blocks_exist(block):
    file, _, name = block.mark[2].partition('::')
    assert f'def {name}(' in (ROOT / file).read_text()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_fenced_and_named(page):
    assert not [token.content for token in parse(page) if token.type == 'code_block']
    assert {block.language for block in BLOCKS[page]} <= {'bash', 'python', 'text'}


def anchors(page: Path) -> set[str]:
    """Those of a page's headings."""
    tokens = parse(page)
    titles = [tokens[i + 1].children or [] for i, token in enumerate(tokens) if token.type == 'heading_open']
    return {slugify(''.join(part.content for part in title), '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    parts = [part for token in parse(page) for part in token.children or []]
    links = [
        str(part.attrs.get('href') or part.attrs.get('src')) for part in parts if part.type in ('link_open', 'image')
    ]
    for link in map(urlsplit, links):
        if link.scheme:
            continue
        target = (page.parent / unquote(link.path)).resolve() if link.path else page
        assert target.exists(), link.geturl()
        assert not link.fragment or link.fragment in anchors(target), link.geturl()


@pytest.mark.skipif(importlib.util.find_spec('material') is None, reason='the site needs mkdocs-material')
def test_site_builds_without_a_warning(tmp_path):
    run('mkdocs', 'build', '--strict', '--quiet', '--site-dir', tmp_path, cwd=ROOT)
    assert (tmp_path / 'api' / 'models.html').exists()


def test_public_names_exist():
    python = (DOCS / 'public.md').read_text().partition('## In Python')[2].partition('\n## ')[0]
    names = re.findall(r'`(mmvit\.[\w.]+)`', python)
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.rpartition('.')
        assert hasattr(importlib.import_module(module), attribute), name


def test_names_for_configs_exist():
    configs = (DOCS / 'public.md').read_text().partition('## In configs')[2].partition('\n## ')[0]
    names = re.findall(r'`mmvit\.(\w+)`', configs)
    registries = [registry for registry in vars(mmvit.registry).values() if isinstance(registry, Registry)]
    assert names
    assert not [name for name in names if not any(registry.get(name) for registry in registries)]


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == mmvit.__version__
