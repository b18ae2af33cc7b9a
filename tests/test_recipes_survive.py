"""The recipes as users start them: a signal to mim alone, and a learning rate that is far too high."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import BIN, ENV, data_options, run, scalars

pytestmark = pytest.mark.slow

DETECTOR = 'configs/maskrcnn_regionvit_t_digits.py'
SEGMENTER = """
_base_ = '{config}'
train_dataloader = dict(batch_size=4, dataset=dict(data_root='{root}/'))
val_dataloader = test_dataloader = dict(dataset=dict(data_root='{root}/'))
param_scheduler = []
optim_wrapper = dict(optimizer=dict(lr=1e6))
"""


def test_a_training_whose_mim_is_ended_ends_with_a_checkpoint(digits, tmp_path):
    """A scheduler's SIGTERM may reach mim alone, which passes on nothing."""
    options = [*data_options(digits), 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=1']
    command = ['mim', 'train', 'mmdet', DETECTOR, '--work-dir', tmp_path, *options]
    with open(tmp_path / 'output.txt', 'w') as output:
        mim = subprocess.Popen(
            [BIN / command[0], *map(str, command[1:])],
            env=ENV,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait(lambda: scalars(tmp_path, 'loss'))
        training = int(Path(f'/proc/{mim.pid}/task/{mim.pid}/children').read_text().split()[0])
        mim.terminate()
        mim.wait()
        wait(lambda: not is_running(training))
    finally:
        if mim.poll() is None or is_running(mim.pid):
            os.killpg(mim.pid, signal.SIGKILL)
    text = (tmp_path / 'output.txt').read_text()
    assert 'Training ended by SIGTERM after iteration' in text
    assert re.search(rf'/mim train mmdet {DETECTOR} --work-dir {tmp_path} .*--cfg-options .*=1 --resume\n', text)
    assert (tmp_path / 'interrupted.pth').exists()
    assert 'ANEW' not in run(*command, '--resume')
    assert len(scalars(tmp_path, 'loss')) == 32  # none twice


def wait(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'


def test_a_detector_stops_at_a_loss_that_is_not_finite(digits, tmp_path):
    options = [
        *data_options(digits),
        'optim_wrapper.optimizer.lr=1e6',
        'optim_wrapper.clip_grad=None',
        'param_scheduler=[]',
    ]
    with pytest.raises(AssertionError, match=r'Training stopped at iteration \d+: not finite: .*loss.*, loss_'):
        run('mim', 'train', 'mmdet', DETECTOR, '--work-dir', tmp_path, *options)
    assert not list(tmp_path.glob('*.pth'))


def test_a_segmenter_stops_at_a_loss_that_is_not_finite(digits, tmp_path):
    mine = tmp_path / 'mine.py'
    mine.write_text(SEGMENTER.format(config=Path('configs/upernet_mpvit_t_digits.py').resolve(), root=digits))
    with pytest.raises(AssertionError, match=r'Training stopped at iteration \d+: not finite: .*decode'):
        run('mim', 'train', 'mmseg', mine, '--work-dir', tmp_path)
    assert not list(tmp_path.glob('*.pth'))
