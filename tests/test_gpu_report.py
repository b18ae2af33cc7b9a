"""The tools for a machine with a GPU: the wheels that are carried there, and the report. Neither needs a GPU here."""

import json
import math
import os
import re
import subprocess
import sys
import time
from importlib.metadata import distribution, files, requires, version
from pathlib import Path

import gpu_bundle
import gpu_report
import pytest
from benchmark import Job, find_builder
from commands import ENV, run
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OPTIONS = ('--rehearse', '--only', r'recorded operators|ResNet-50, \w+, [12],')


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, 'report', lambda: 'this machine')
    return gpu_report.Report(tmp_path / 'report')


def test_parts_of_a_bundle_are_unpacked_together(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_bundle, 'LARGEST_PART', 10_000)
    wheels, out, unpacked = (tmp_path / name for name in ('wheels', 'out', 'unpacked'))
    for folder in (wheels, out, unpacked):
        folder.mkdir()
    (out / 'part99').write_text('of an older bundle')
    files = {f'{name}.whl': os.urandom(size) for name, size in (('a', 25_000), ('b', 1), ('c', 10_000))}
    for name, data in files.items():
        (wheels / name).write_bytes(data)
    parts = gpu_bundle.pack(wheels, out)
    assert len(parts) > 3
    assert all(part.stat().st_size <= 10_000 for part in parts)
    subprocess.run(f'cat {out}/part* | tar --extract --directory {unpacked}', shell=True, check=True)
    assert {file.name: file.read_bytes() for file in unpacked.iterdir()} == files


@pytest.mark.parametrize(
    ('pin', 'is_left_out'),
    [
        ('torch==2.11.0', True),
        ('triton==3.6.0', True),
        ('nvidia-cudnn-cu13==9.19.0.56', True),
        ('cuda-bindings==13.5.0', True),
        ('torchvision==0.26.0', False),
    ],
)
def test_only_pytorch_is_left_out_of_a_bundle(pin, is_left_out):
    assert bool(gpu_bundle.OF_TORCH.match(pin)) is is_left_out


def test_every_row_can_be_filled():
    """Its model or its tests exist, and no two rows have the same name."""
    base = Job('', device='cuda')
    jobs = [*gpu_report.timed_jobs(base), *gpu_report.profiled_jobs(base)]
    for job in {job.name: job for job in jobs}.values():
        find_builder(job)
    names = [name for name, _ in gpu_report.rows(False, True, lambda: {})]
    assert len(names) == len(set(names)) == len(jobs) + len(gpu_report.TESTS)
    for words in gpu_report.TESTS.values():
        assert 'mark.gpu' in Path(words[0]).read_text()


def test_calls_continue(report):
    """One that is over says so. The next one fills the rows that are missing, and a third none."""
    called = []

    def row(name):
        return name, lambda: called.append(name) or {'tests': f'{name} passed'}

    todo = [row('test: a'), row('test: b'), row('test: c')]
    gpu_report.run_all(todo, report, lambda: len(called) == 1)
    assert called == ['test: a']
    for _ in range(2):
        gpu_report.run_all(todo, gpu_report.Report(report.folder), lambda: False)
    assert called == ['test: a', 'test: b', 'test: c']
    text = (report.folder / 'report.md').read_text()
    assert text.index('a passed') < text.index('b passed') < text.index('c passed')


def test_another_machine_needs_another_folder(report, monkeypatch):
    report.add('test: a', {'tests': '1 passed'})
    monkeypatch.setattr(gpu_report, 'report', lambda: 'another machine')
    with pytest.raises(SystemExit, match='--out'):
        gpu_report.Report(report.folder)


def test_what_fails_or_hangs_is_one_failed_row(monkeypatch):
    with gpu_report.worker() as measured:
        first = measured(os.getpid)
        assert measured(os.getpid) == first
        assert measured(math.sqrt, -1)['failed'].startswith('ValueError')
        assert measured(os.getpid) != first
        monkeypatch.setattr(gpu_report, 'LIMIT', 0.5)
        assert measured(time.sleep, 60) == {'failed': 'TimeoutError'}


def test_failed_tests_are_told(tmp_path):
    test = tmp_path / 'test_wrong.py'
    test.write_text(
        'import os, pytest\n@pytest.mark.gpu\ndef test():\n    assert os.environ["MMVIT_DEVICE"] == "right"\n'
    )
    assert '1 passed' in gpu_report.run_tests([str(test)], 'right')['tests']
    result = gpu_report.run_tests([str(test)], 'wrong')
    assert '1 failed' in result['tests']
    assert result['failed'] == 'exit status 1'
    assert 'MMVIT_DEVICE' in result['output']


def test_times_are_compared():
    results = {
        'time: straightforward MPViT-S, train, 2, fp32, eager': {'ms': 300.0, 'MiB': 1000.0},
        'time: Swin-T, train, 2, bf16-amp, eager': {'ms': 125.0, 'MiB': 900.0},
        'time: MPViT-S, train, 2, bf16-amp, eager': {'ms': 100.0, 'MiB': 700.0},
        'time: MPViT-S, train, 2, bf16-amp, eager, with_cp': {'ms': 150.0, 'MiB': 400.0},
        'time: MPViT-S, train, 16, fp32, eager': {'failed': 'OutOfMemoryError: too much'},
        'operators: MPViT-S, forward, 1, bf16, eager': {'operators': {'aten::mm': 2.5, 'aten::gelu': 1.25}},
    }
    lines = gpu_report.tables('this machine', results).splitlines()
    assert '| MPViT-S | train | 2 | bf16-amp | eager | 100.00 | 700.00 | 3.00 | 0.70 | 0.80 |  |' in lines
    assert '| MPViT-S | train | 2 | bf16-amp | eager with_cp | 150.00 | 400.00 | 2.00 | 0.40 | 1.20 |  |' in lines
    assert '| MPViT-S | train | 16 | fp32 | eager |  |  |  |  |  | OutOfMemoryError: too much |' in lines
    assert '| MPViT-S, forward, 1, bf16, eager | aten::mm 2.50, aten::gelu 1.25 |' in lines


@pytest.fixture
def carried(tmp_path) -> Path:
    """What is carried to a machine with a GPU: a checkout and the bundle. ``machine`` is a Python that has PyTorch."""
    folder = tmp_path / 'carried'
    folder.mkdir()
    for name in ('_mmvit_finder.py', 'configs', 'mmvit', 'model-index.yml', 'pyproject.toml', 'tests', 'tools'):
        run('cp', '--recursive', ROOT / name, folder)
    bundle = folder / 'work_dirs' / 'gpu' / 'bundle'
    python = '.'.join(map(str, sys.version_info[:2]))
    run(sys.executable, 'tools/gpu_bundle.py', python, version('torch').partition('+')[0], '--out', bundle)
    run(sys.executable, '-m', 'venv', '--without-pip', folder / 'machine')
    (packages,) = folder.glob('machine/lib/*/site-packages')
    for path in {path for name in needed('torch') for path in top_level(name)}:
        (packages / path.name).symlink_to(path)
    return folder


def needed(name: str) -> set[str]:
    """A package and all that it requires here."""
    found, names = set(), [name]
    while names:
        found.add(name := names.pop())
        required = [Requirement(line) for line in requires(name) or ()]
        here = {r.name for r in required if r.marker is None or r.marker.evaluate({'extra': ''})}
        names += here - found
    return found


def top_level(name: str) -> set[Path]:
    """The files and folders of a package in site-packages."""
    root = Path(distribution(name).locate_file(''))
    return {root / file.parts[0] for file in files(name) or () if file.parts[0] != '..'}


@pytest.mark.slow
def test_rehearsal_continues_after_a_kill(carried, tmp_path):
    """With PyTorch from the machine, and all else from the bundle."""
    command = ['bash', str(carried / 'tools' / 'gpu_report.sh'), *OPTIONS, '--out', str(tmp_path)]
    environment = {**ENV, 'PYTHON': str(carried / 'machine' / 'bin' / 'python')}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if line.startswith('time: ResNet-50'))
        process.kill()
    packages = carried / 'work_dirs' / 'gpu' / 'packages'
    assert (packages / 'mmdet').is_dir()
    assert not (packages / 'torch').exists()
    before = json.loads((tmp_path / 'report.json').read_text())['results']
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    after = json.loads((tmp_path / 'report.json').read_text())['results']
    assert {name: after[name] for name in before} == before
    assert len(re.findall('^(?:test|time): ', output, re.MULTILINE)) == len(after) - len(before)
    assert len(after) == 9
    assert [row for row in after.values() if 'failed' in row] == []
    assert (tmp_path / 'report.md').read_text().count('| ResNet-50 |') == 8
