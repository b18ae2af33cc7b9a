"""The command that goes on with a training, and the files it starts from."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmvit.training import launch
from mmvit.training.files import is_whole, newest_whole, write_whole


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ('train.py c.py', 'train.py c.py'),
        ('train.py c.py --resume', 'train.py c.py'),
        ('train.py c.py --resume --amp', 'train.py c.py --amp'),
        ('train.py c.py --resume old.pth --amp', 'train.py c.py --amp'),
        ('train.py --resume=old.pth c.py', 'train.py c.py'),
        ('mim train mmdet c.py --cfg-options a=1 b=2', 'mim train mmdet c.py --cfg-options a=1 b=2'),
    ],
)
def test_a_command_is_freed_of_what_it_resumed_from(words, expected):
    assert launch.without_resume(words.split()) == expected.split()


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ('/venv/bin/python /venv/bin/mim train mmdet c.py', True),
        ('/usr/bin/torchrun --nproc-per-node 2 train.py c.py', True),
        ('python -m torch.distributed.run train.py', True),
        ('python -u my.py c.py mim', False),
        ('bash -c make', False),
    ],
)
def test_launchers_are_known(words, expected):
    assert launch.is_launcher(words.split()) is expected


def test_the_command_is_the_launchers(monkeypatch):
    monkeypatch.setattr(sys, 'orig_argv', ['python', 'my train.py', 'c.py', '--resume', 'old.pth'])
    monkeypatch.setattr(launch, 'parents', lambda: iter([]))
    assert launch.resuming_command() == "python 'my train.py' c.py --resume"
    torchrun = ['python', '-m', 'torch.distributed.run', 'train.py', 'c.py']
    monkeypatch.setattr(launch, 'parents', lambda: iter([(7, torchrun), (6, ['mim', 'train']), (5, ['bash'])]))
    assert launch.resuming_command() == 'mim train --resume'
    assert launch.mim_process() == 6


def test_a_process_that_ended_does_not_run():
    process = subprocess.Popen(['sleep', '60'])
    assert launch.is_running(process.pid)
    process.kill()
    deadline = time.monotonic() + 10
    while launch.is_running(process.pid) and time.monotonic() < deadline:  # it is a zombie: nobody waited for it
        time.sleep(0.01)
    assert not launch.is_running(process.pid)
    process.wait()
    assert not launch.is_running(process.pid)


def test_whole_and_broken_files(tmp_path):
    whole = tmp_path / 'epoch_1.pth'
    torch.save(dict(weight=torch.randn(1000)), whole)
    assert is_whole(whole)
    content = whole.read_bytes()
    for name, broken in dict(cut=content[:-9], flipped=flip(content), empty=b'', text=b'version https').items():
        path = tmp_path / f'epoch_{name}.pth'
        path.write_bytes(broken)
        assert not is_whole(path), name
    assert not is_whole(tmp_path / 'absent.pth')
    found, broken = newest_whole(tmp_path, ['epoch_*.pth'])
    assert found == whole
    assert len(broken) == 4


def flip(content: bytes) -> bytes:
    """The same with one bit of the tensor changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_folder_of_shards_is_whole_with_all_of_them(tmp_path):
    folder = tmp_path / 'epoch_1.pth'
    folder.mkdir()
    assert not is_whole(folder)
    for rank in range(2):
        torch.save(dict(weight=torch.ones(9)), folder / f'rank{rank}.pth')
    assert is_whole(folder)
    (folder / 'rank1.pth').write_bytes(b'')
    assert not is_whole(folder)


def test_a_small_file_is_written_whole(tmp_path):
    path = Path(tmp_path, 'last_checkpoint')
    for text in ('one', 'another'):
        write_whole(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
