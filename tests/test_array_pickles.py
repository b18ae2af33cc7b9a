"""detectron2's pickles: arrays of every protocol and NumPy are read, and nothing in a file is run."""

import collections
import os
import pickle
import pickletools

import numpy as np
import pytest

from mmvit.checkpoints.array_pickles import RefusedPickleError, read_array_pickle
from mmvit.checkpoints.files import read_checkpoint

ARRAYS = {
    'float32': np.arange(6, dtype=np.float32).reshape(2, 3),
    'float16': np.array([[1.5]], np.float16),
    'int64': np.arange(3),
    'bool': np.array([True, False]),
    'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'big-endian': np.arange(3, dtype='>f8'),
    'empty': np.zeros((0, 4), np.float32),
    'one': np.array(7, np.uint8),
    'number': np.float32(0.1),
}
# A pickle of Python 2 with NumPy 1: dict(w=arange(2, dtype=float32)). Its bytes are texts.
PYTHON_2 = (
    b'\x80\x02}q\x00U\x01wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01b'
    b'q\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02f4q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\rNNN'
    b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0ebI00\nU\x08\x00\x00\x00\x00\x00\x00\x80?q\x0ftq\x10bs.'
)


@pytest.fixture
def stored(tmp_path):
    def write(data):
        path = tmp_path / 'model.pkl'
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize('core', [b'numpy.core.', b'numpy._core.'])
@pytest.mark.parametrize('protocol', range(2, 6))
def test_arrays_of_each_protocol(protocol, core, stored):
    notes = {'__author__': 'them', 'matching_heuristics': True, 'iteration': 2**40, 'loss': [0.5, None], 'size': (1, 2)}
    data = pickle.dumps({'model': ARRAYS, **notes}, protocol)
    if protocol < 4:  # texts have no lengths there
        data = data.replace(b'numpy._core.', core)
    found = read_array_pickle(stored(data))
    weights = found.pop('model')
    assert found == notes
    assert weights.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        assert (weights[name].shape, weights[name].dtype) == (expected.shape, expected.dtype.newbyteorder('='))
        np.testing.assert_array_equal(weights[name], expected)


def test_a_pickle_of_python_2(stored):
    found = read_array_pickle(stored(PYTHON_2))
    np.testing.assert_array_equal(found['w'], np.arange(2, dtype=np.float32))


def test_it_is_read_as_a_checkpoint(stored):
    found = read_checkpoint(str(stored(pickle.dumps(collections.OrderedDict(model=ARRAYS)))))
    np.testing.assert_array_equal(found['model']['float32'], ARRAYS['float32'])


class Asks:
    """Unpickled by pickle's own loader, it calls a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ('content', 'named'),
    [
        (Asks(os.mkdir, 'made'), '(posix|nt).mkdir'),
        (Asks(getattr, 'text', 'format'), '(__builtin__|builtins).getattr'),
        (Asks(np.load, 'file.npy'), 'numpy.*load'),
        (np.array([{}], object), "an array of type 'O8'"),
        (np.array(['text']), "an array of type 'U4'"),
        ({1, 2}, 'operation EMPTY_SET|__builtin__.set'),
    ],
)
@pytest.mark.parametrize('protocol', [2, 4])
def test_anything_else_is_refused_by_name_and_not_run(content, named, protocol, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = stored(pickle.dumps({'model': {'w': content}}, protocol))
    with pytest.raises(RefusedPickleError, match=named):
        read_array_pickle(path)
    with pytest.raises(RuntimeError, match=f'could run code .*({named})'):
        read_checkpoint(str(path))
    assert not (tmp_path / 'made').exists()


def test_a_damaged_file_is_not_taken(stored):
    data = pickle.dumps({'w': ARRAYS['float32']}, 4)
    operations = [position for *_, position in pickletools.genops(data)]
    for end in [*operations, len(data) - 1]:  # cut off before each operation
        with pytest.raises(RuntimeError, match=r'is empty|is not a whole checkpoint'):
            read_checkpoint(str(stored(data[:end])))
    with pytest.raises(RuntimeError, match=r'array of shape \(2, 3\) has 5 values'):
        read_checkpoint(str(stored(pickle.dumps({'w': Asks(*short_array())}))))
    with pytest.raises(RuntimeError, match='holds a list'):
        read_checkpoint(str(stored(pickle.dumps([1]))))


def short_array():
    function, (data, *rest) = ARRAYS['float32'].__reduce_ex__(5)
    return function, bytes(data)[:20], *rest
