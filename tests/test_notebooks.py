"""The notebooks of docs run to their end, as a reader runs them, and are kept without outputs."""

import json
import re
from pathlib import Path

import pytest
from commands import ENV

DOCS = Path(__file__).parents[1] / 'docs'
NOTEBOOKS = sorted((DOCS / 'notebooks').glob('*.ipynb'))
METADATA = {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
}
each = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


@each
@pytest.mark.slow
def test_runs(path, tmp_path):
    """What it says is asserted in its cells, and it draws."""
    import nbformat  # noqa: PLC0415  the tests of a GPU do without
    from nbclient import NotebookClient  # noqa: PLC0415

    work = tmp_path / 'work'
    work.mkdir()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(work)}})
    client.execute(env={**ENV, 'IPYTHONDIR': str(tmp_path / 'ipython')})
    outputs = [output for cell in code_cells(notebook) for output in cell['outputs']]
    assert any('image/png' in output.get('data', {}) for output in outputs)


@each
def test_is_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert notebook['metadata'] == METADATA
    assert not any(cell['metadata'] for cell in notebook['cells'])
    assert not any(cell['outputs'] or cell['execution_count'] for cell in code_cells(notebook))


@each
def test_pages_that_it_names_exist(path):
    """By title and not by link: the reader has the notebook alone."""
    titles = {page.read_text().splitlines()[0].removeprefix('# ') for page in DOCS.glob('*.md')}
    named = re.findall(r'The page \*(.+?)\*', path.read_text())
    assert named
    assert titles.issuperset(named)


def test_page_names_each():
    named = re.findall(r'notebooks/(\w+\.ipynb)', (DOCS / 'notebooks.md').read_text())
    assert sorted(named) == [path.name for path in NOTEBOOKS]


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
