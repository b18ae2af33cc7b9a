"""A training goes on after kills, signals and full disks as if nothing had been."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from kill_training import kill_and_resume
from toy_training import finish, losses, start, weights

from mmvit.training.files import is_whole

pytestmark = pytest.mark.slow

ALL = pytest.mark.parametrize(
    ('loop', 'processes', 'workers'),
    [('epoch', 1, 0), ('epoch', 1, 2), ('epoch', 2, 0), ('iter', 1, 0), ('iter', 1, 2), ('iter', 2, 0)],
)


def output(folder):
    return (folder / 'output.txt').read_text()


def until(condition, processes, seconds=60):
    """Wait for a condition while the processes run."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in processes)
        time.sleep(0.005)


def reached(folder, iteration):
    file = folder / 'losses_0.jsonl'
    return lambda: file.exists() and len(file.read_text().splitlines()) >= iteration


def assert_equal_trainings(one, two, processes):
    for rank in range(processes):
        assert losses(one, rank) == losses(two, rank)
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


@ALL
def test_resumed_equals_uninterrupted(loop, processes, workers, tmp_path):
    """From the checkpoint of an epoch and, in an iteration-based loop, of an iteration."""
    assert_equal_after_a_kill(tmp_path, processes, loop=loop, workers=workers)


def test_a_sharded_training_is_resumed(tmp_path):
    """FSDP."""
    assert_equal_after_a_kill(tmp_path, 2, sharded=True, epochs=3)


def assert_equal_after_a_kill(tmp_path, processes, **options):
    """The files that the killed part leaves are whole, and the training that goes on ends as one without a kill."""
    assert finish(start(tmp_path / 'whole', processes, **options)) == [0] * processes
    trained = start(tmp_path / 'parts', processes, **options, pause=0.1)
    until((tmp_path / 'parts' / 'last_checkpoint').exists, trained)
    for process in trained:
        process.kill()
    finish(trained)
    assert all(is_whole(path) for path in (tmp_path / 'parts').glob('*.pth'))
    assert finish(start(tmp_path / 'parts', processes, **options, resume=True)) == [0] * processes
    assert_equal_trainings(tmp_path / 'whole', tmp_path / 'parts', processes)


@pytest.mark.parametrize(('processes', 'workers'), [(1, 0), (1, 2), (2, 0)])
def test_an_interrupted_epoch_is_resumed_where_it_was(processes, workers, tmp_path):
    options = dict(workers=workers)
    assert finish(start(tmp_path / 'whole', processes, **options)) == [0] * processes
    trained = start(tmp_path / 'parts', processes, **options, pause=0.3)
    until(reached(tmp_path / 'parts', 6), trained)
    os.kill(trained[-1].pid, signal.SIGTERM)  # one of them
    assert finish(trained) == [143] * processes
    saved = torch.load(tmp_path / 'parts' / 'interrupted.pth', weights_only=True)
    assert saved['meta']['epoch'] == 1
    assert 6 <= saved['meta']['iter'] < 8
    assert output(tmp_path / 'parts').count('Training ended by SIGTERM') == 1
    assert finish(start(tmp_path / 'parts', processes, **options, resume=True)) == [0] * processes
    assert_equal_trainings(tmp_path / 'whole', tmp_path / 'parts', processes)
    assert not (tmp_path / 'parts' / 'interrupted.pth').exists()


def test_ctrl_c_reaches_workers_and_ends_with_a_checkpoint(tmp_path):
    """A terminal sends it to all processes of the group, a scheduler SIGTERM."""
    for loop, number in (('iter', signal.SIGINT), ('epoch', signal.SIGTERM)):
        folder = tmp_path / loop
        (trained,) = start(folder, loop=loop, workers=2, pause=0.3)
        until(reached(folder, 2), [trained])
        children = Path(f'/proc/{trained.pid}/task/{trained.pid}/children').read_text().split()
        assert len(children) == 2
        for pid in (trained.pid, *map(int, children)):
            os.kill(pid, number)
        assert finish([trained]) == [128 + number]
        assert (folder / 'interrupted.pth').exists()
        assert f'Training ended by {number.name} after iteration' in output(folder)
        assert output(folder).rstrip().endswith('--resume')


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    (trained,) = start(tmp_path, pause=20.0)
    until(lambda: (tmp_path / 'output.txt').exists() and 'training' in output(tmp_path), [trained])
    os.kill(trained.pid, signal.SIGINT)
    until(lambda: 'Ctrl-C ends it at once' in output(tmp_path), [trained])
    time.sleep(1.2)
    os.kill(trained.pid, signal.SIGINT)
    assert finish([trained], 10) == [1]
    assert not (tmp_path / 'interrupted.pth').exists()


@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_a_loss_that_is_not_finite_stops_all_before_a_save(loop, processes, tmp_path):
    """In one of the processes only, at the iteration after which all would save."""
    trained = start(tmp_path, processes, loop=loop, spoilt=8)
    assert finish(trained) == [1] * processes
    assert 'Training stopped at iteration 8: not finite: loss, loss_mean.' in output(tmp_path)
    assert 'Traceback' not in output(tmp_path)
    saved = torch.load((tmp_path / 'last_checkpoint').read_text(), weights_only=True)
    assert saved['meta']['iter'] == 4
    assert all(value.isfinite().all() for value in saved['state_dict'].values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The loss before them was finite: the next one would not be."""
    assert finish(start(tmp_path, spoilt_weights=8)) == [1]
    assert 'Training stopped at iteration' in output(tmp_path)
    assert 'the weights are not finite' in output(tmp_path)
    assert torch.load((tmp_path / 'last_checkpoint').read_text(), weights_only=True)['meta']['iter'] == 4


@pytest.mark.parametrize('processes', [1, 2])
def test_a_full_disk_leaves_the_last_checkpoint(processes, tmp_path):
    assert finish(start(tmp_path, processes, epochs=1, ballast=1)) == [0] * processes
    before = {path.name: path.read_bytes() for path in tmp_path.glob('*.pth')}
    assert finish(start(tmp_path, processes, epochs=2, ballast=1, resume=True, largest_file=2**20)) == [1] * processes
    text = output(tmp_path)
    assert f'Training stopped: {tmp_path}/epoch_2.pth could not be saved (' in text
    assert f'{tmp_path}/epoch_1.pth is whole. Make room and go on with:' in text
    assert 'Traceback' not in text
    assert {path.name: path.read_bytes() for path in tmp_path.glob('*.pth')} == before
    assert not list(tmp_path.glob('*.partial'))
    assert finish(start(tmp_path, processes, epochs=2, ballast=1, resume=True)) == [0] * processes
    assert (tmp_path / 'epoch_2.pth').exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ('damage', 'expected'),
    [
        (lambda folder: (folder / 'epoch_2.pth').unlink(), 'which is gone. Going on from {folder}/epoch_1.pth'),
        (lambda folder: cut(folder / 'epoch_2.pth'), 'which is not whole. Going on from {folder}/epoch_1.pth'),
        (lambda folder: (folder / 'last_checkpoint').unlink(), 'is missing. Going on from {folder}/epoch_2.pth'),
        (lambda folder: (folder / 'last_checkpoint').write_text(''), 'is missing. Going on from {folder}/epoch_2.pth'),
        (
            lambda folder: (folder / 'last_checkpoint').write_text(f'{folder}/epoch_1.pth'),
            'which is older. Going on from {folder}/epoch_2.pth',
        ),
        (lambda folder: [cut(path) for path in folder.glob('epoch*')], 'TRAINING BEGINS ANEW. Not whole: {folder}/epo'),
        (lambda folder: [path.unlink() for path in folder.glob('*epoch*')], 'TRAINING BEGINS ANEW.'),
    ],
    ids=['gone', 'cut', 'no name', 'empty name', 'older', 'all cut', 'none'],
)
@pytest.mark.parametrize('processes', [1, 2])
def test_resume_takes_the_newest_whole_checkpoint(processes, damage, expected, trained_twice, tmp_path):
    shutil.copytree(trained_twice, tmp_path, dirs_exist_ok=True)
    last = tmp_path / 'last_checkpoint'
    last.write_text(last.read_text().replace(str(trained_twice), str(tmp_path)))
    damage(tmp_path)
    assert finish(start(tmp_path, processes, epochs=3, resume=True, keep=9)) == [0] * processes
    assert expected.format(folder=tmp_path) in output(tmp_path)
    assert (tmp_path / 'epoch_3.pth').exists()


@pytest.fixture(scope='module')
def trained_twice(tmp_path_factory):
    """The folder of two epochs, both kept."""
    folder = tmp_path_factory.mktemp('twice')
    assert finish(start(folder, epochs=2, keep=9)) == [0]
    return folder


def test_resume_says_nothing_where_all_is_well(trained_twice, tmp_path):
    shutil.copytree(trained_twice, tmp_path, dirs_exist_ok=True)
    (tmp_path / 'last_checkpoint').write_text(f'{tmp_path}/epoch_2.pth')
    assert finish(start(tmp_path, epochs=3, resume=True, keep=9)) == [0]
    assert 'Going on from' not in output(tmp_path)
    assert 'ANEW' not in output(tmp_path)


def test_data_come_in_the_first_runs_order_without_a_seed(tmp_path):
    for loop, workers in (('epoch', 0), ('iter', 2)):
        folder = tmp_path / loop
        options = dict(loop=loop, workers=workers, seed=None)
        assert finish(start(folder, epochs=1, **options)) == [0]
        assert finish(start(folder, epochs=2, resume=True, **options)) == [0]
        seed = torch.load((folder / 'last_checkpoint').read_text(), weights_only=True)['meta']['seed']
        first, second = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
        order = [torch.randperm(16, generator=g) for g in (first, second if loop == 'epoch' else first)]
        assert [index for line in losses(folder).values() for index in line['seen']] == torch.cat(order).tolist()


def test_every_resume_after_a_kill_goes_on():
    """The first few of ``python tests/kill_training.py``, which kills as often as one likes."""
    result = kill_and_resume(4, ballast=8)
    assert result.failed == []
    assert (result.kills, result.in_two, result.aimed) == (4, 2, 2)
    assert sum(result.lost.values()) == 4
