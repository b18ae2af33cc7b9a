"""Random damage to checkpoint files: each is refused with a sentence that names it, or gives the right weights."""

from __future__ import annotations

import builtins
import copy
import importlib
import io
import json
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import tempfile
import timeit
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from families import FAMILIES, Family
from hostile import WRITERS, Asks
from hypothesis import example, given
from hypothesis import strategies as st

from mmvit.checkpoints.files import read_checkpoint

WEIGHTS = {
    'a.weight': torch.arange(60.0).reshape(4, 15),
    'b.bias': torch.tensor([7, 8]),
    'b.weight': torch.arange(6.0).bfloat16().view(2, 3),
}


def saved(name: str, content: Any = WEIGHTS) -> bytes:
    """A file of one of ``FORMATS``."""
    if name.endswith('.safetensors'):
        return safetensors.torch.save(content)
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=name != 'old.pth')
    return buffer.getvalue()


FORMATS = {name: saved(name) for name in ('new.pth', 'old.pth', 'weights.safetensors')}
HAS_CHECKSUMS = {'new.pth'}


@contextmanager
def empty_folder() -> Iterator[Path]:
    """An empty folder, which is the working directory for the time."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Path(folder)


def attempt(load: Callable[[str], Any], path: Path) -> tuple[bool, Any]:
    """Whether a file is accepted, and what it gives. It must be refused with a sentence that names it."""
    try:
        return True, load(str(path))
    except (RuntimeError, ValueError) as error:
        if str(path) not in str(error):
            raise
        return False, None


def read(name: str, data: bytes) -> Mapping[str, Any] | None:
    """What a file of these bytes holds; None if it is refused."""
    with empty_folder() as folder:
        (folder / name).write_bytes(data)
        return attempt(read_checkpoint, folder / name)[1]


def is_equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# Damage on the way.


@given(name=st.sampled_from(sorted(FORMATS)), part=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut(name: str, part: float):
    data = FORMATS[name]
    assert read(name, data[: int(part * len(data))]) is None


@given(name=st.sampled_from(sorted(FORMATS)), added=st.binary(min_size=1, max_size=99))
def test_a_file_that_goes_on(name: str, added: bytes):
    found = read(name, FORMATS[name] + added)
    assert found is None or is_equal(found, WEIGHTS)


CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def flipped(data: bytes, changes: list[tuple[float, int]]) -> bytes:
    """Bytes with some bits of some of them turned."""
    changed = bytearray(data)
    for part, bits in changes:
        changed[int(part * len(data))] ^= bits
    return bytes(changed)


@given(name=st.sampled_from(sorted(FORMATS)), changes=CHANGES)
@example(name='new.pth', changes=[(0.875, 1)])  # the zip's directory does not begin as it must
def test_a_file_with_flipped_bits(name: str, changes: list[tuple[float, int]]):
    found = read(name, flipped(FORMATS[name], changes))
    if name in HAS_CHECKSUMS:
        assert found is None or is_equal(found, WEIGHTS)


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip with these members, and right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


with zipfile.ZipFile(io.BytesIO(FORMATS['new.pth'])) as _archive:
    MEMBERS = {name: _archive.read(name) for name in _archive.namelist()}


@given(changes=CHANGES, is_bare=st.booleans())
def test_a_pickle_with_flipped_bits(changes: list[tuple[float, int]], is_bare: bool):
    """The bits are flipped before the checksum is made, or there is none."""
    if is_bare:
        read('bare.pth', flipped(pickle.dumps({'a': [1, 2.5, 'text', (b'bytes', None)]}, 2), changes))
    else:
        read('new.pth', zipped({**MEMBERS, 'new/data.pkl': flipped(MEMBERS['archive/data.pkl'], changes)}))
        read('new.pth', zipped({**MEMBERS, 'archive/data.pkl': flipped(MEMBERS['archive/data.pkl'], changes)}))


@given(lost=st.sets(st.sampled_from(sorted(MEMBERS))), pair=st.permutations(sorted(MEMBERS)))
def test_a_zip_whose_members_are_lost_or_exchanged(lost: set[str], pair: list[str]):
    members = {**MEMBERS, pair[0]: MEMBERS[pair[1]], pair[1]: MEMBERS[pair[0]]}
    read('new.pth', zipped({name: data for name, data in members.items() if name not in lost}))


STARTS = [b'', b'PK\3\4', b'\x80\2', b'\x80\5\x95', b'<html>', b'{"', FORMATS['old.pth'][:99], bytes([9, *bytes(7)])]


@given(name=st.sampled_from(sorted(FORMATS)), start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
def test_any_bytes(name: str, start: bytes, rest: bytes):
    read(name, start + rest)


NUMBERS = st.integers(-1, 99) | st.integers(-(2**65), 2**65) | st.sampled_from(['1', None, 1.5, True])
ENTRIES = st.fixed_dictionaries(
    {},
    optional=dict(
        dtype=st.sampled_from(['F32', 'F64', 'BF16', 'I64', 'BOOL', 'F8_E4M3', 'F4', 'X9', '', None, 7]),
        shape=st.lists(NUMBERS, max_size=4) | NUMBERS,
        data_offsets=st.lists(NUMBERS, max_size=3) | NUMBERS,
        more=st.just(1),
    ),
)
TEXTS = st.dictionaries(st.sampled_from(['a', 'b', '', '__metadata__', '\0']), ENTRIES | NUMBERS).map(json.dumps)


@given(header=TEXTS | st.text(max_size=50), length=st.none() | st.integers(0, 2**64 - 1), data=st.binary(max_size=99))
def test_safetensors_with_a_wrong_header(header: str, length: int | None, data: bytes):
    text = header.encode()
    size = len(text) if length is None else length
    found = read('weights.safetensors', size.to_bytes(8, 'little') + text + data)
    if found:
        declared = json.loads(header)
        assert all(list(tensor.shape) == declared[name]['shape'] for name, tensor in found.items())


# Code in a pickle. Run, each of these leaves something in the working directory.


def in_another_file(call: Asks) -> Asks:
    return Asks(pickle.loads, pickle.dumps(call))


TOUCH = "open('ran', 'w').close()"
CALLS = {
    'os.system': Asks(os.system, 'touch ran'),
    'os.mkdir': Asks(os.mkdir, 'ran'),
    'subprocess.run': Asks(subprocess.run, ['touch', 'ran']),
    'subprocess.check_output': Asks(subprocess.check_output, ['touch', 'ran']),
    'exec': Asks(exec, TOUCH),
    'eval': Asks(eval, TOUCH),
    'open': Asks(open, 'ran', 'w'),
    'timeit': Asks(timeit.timeit, TOUCH, 'pass', timeit.default_timer, 1),
    'shutil.copytree': Asks(shutil.copytree, '.', 'ran'),
    'numpy.save': Asks(np.save, 'ran', 1),
    'numpy.memmap': Asks(np.memmap, 'ran', 'uint8', 'w+', 0, (1,)),
    'torch.save': Asks(torch.save, 1, 'ran'),
    'Path.touch': Asks(Path.touch, Asks(Path, 'ran')),
    'import_module': Asks(list, Asks(map, Asks(getattr, Asks(importlib.import_module, 'os'), 'mkdir'), ['ran'])),
    '__import__': Asks(list, Asks(map, Asks(getattr, Asks(builtins.__import__, 'os'), 'mkdir'), ['ran'])),
    'partial': Asks(partial(os.mkdir, 'ran')),
    'methodcaller': Asks(operator.methodcaller('touch'), Asks(Path, 'ran')),
    'runpy': Asks(runpy.run_path, 'code.txt'),
    'a pickle in it': in_another_file(Asks(os.mkdir, 'ran')),
    'tree_map': Asks(torch.utils._pytree.tree_map, eval, [TOUCH]),
    'the state of an object': Asks(setattr, Asks(Namespace), 'a', Asks(os.mkdir, 'ran')),
}
PLACES: dict[str, Callable] = {
    'a value': lambda call: {**WEIGHTS, 'x': call},
    'the first value': lambda call: {'x': call, **WEIGHTS},
    'a list': lambda call: {'state_dict': [1, [call]]},
    'a tuple': lambda call: {'state_dict': (1, (call,))},
    'a key': lambda call: {(1, Asks(str, call)): 1},
    'an ordered mapping': lambda call: OrderedDict(meta=call),
    'arguments': lambda call: {'args': Namespace(lr=0.1, model=call)},
    'the whole file': lambda call: call,
}


@given(
    call=st.sampled_from(sorted(CALLS)),
    place=st.sampled_from(sorted(PLACES)),
    form=st.sampled_from(WRITERS),
    name=st.sampled_from(['weights.pth', 'weights.pt', 'weights.bin', 'weights']),
)
def test_code_does_not_run(call: str, place: str, form: tuple[Callable, Callable], name: str):
    write, unsafe = form
    with empty_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # whatever the user told torch
        (folder / 'code.txt').write_text(TOUCH)
        path = folder / name
        write(PLACES[place](CALLS[call]), path)
        before = set(os.listdir())
        assert not attempt(read_checkpoint, path)[0]
        assert set(os.listdir()) == before
        with suppress(Exception):  # what the code returned may not fit
            unsafe(path)
        assert set(os.listdir()) != before  # it is hostile indeed


# Right files with wrong weights.

ODD = [
    None, 1, 'text', [1.0, 2.0], {'a': 1}, np.ones(2), torch.ones(()), torch.ones(0), torch.ones(2, 3),
    torch.zeros(1, 7, 9), torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.complex64), torch.ones(3).bool(),
    torch.ones(2, device='meta'), torch.nn.Parameter(torch.ones(5)), torch.ones(1).expand(2**40),
]  # fmt: skip
if hasattr(torch, 'quantize_per_tensor'):  # PyTorch is giving it up
    ODD.append(torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8))
EDITS: dict[str, Callable] = {
    'exchange': lambda weights, a, b, odd: weights.update({a: weights[b], b: weights[a]}),
    'lose': lambda weights, a, b, odd: weights.pop(a),
    'rename': lambda weights, a, b, odd: weights.update({f'{a}.more': weights.pop(a)}),
    'add': lambda weights, a, b, odd: weights.update({f'{a}.more': odd}),
    'replace': lambda weights, a, b, odd: weights.update({a: odd}),
    'flatten': lambda weights, a, b, odd: weights.update({a: weights[a].flatten()}),
    'round': lambda weights, a, b, odd: weights.update({a: weights[a].bfloat16()}),
    'to integers': lambda weights, a, b, odd: weights.update({a: weights[a].to(torch.int8)}),
    'turn': lambda weights, a, b, odd: weights.update({a: weights[a].mT.contiguous() if weights[a].ndim > 1 else odd}),
    'alias': lambda weights, a, b, odd: weights.update({a: weights[b]}),
    'number the key': lambda weights, a, b, odd: weights.update({7: odd}),
}
WRAPS: dict[str, Callable] = {
    'bare': lambda weights: weights,
    'model': lambda weights: {'model': weights, 'epoch': 3},
    'state_dict': lambda weights: {'state_dict': weights, 'meta': {}},
    'detector': lambda weights: {'state_dict': {f'backbone.{key}': value for key, value in weights.items()}},
    'deeper': lambda weights: {'model': {'state_dict': weights}},
    'list': lambda weights: {'model': [weights]},
}


@given(
    family=st.sampled_from(FAMILIES),
    edit=st.sampled_from(sorted(EDITS)),
    odd=st.integers(0, len(ODD) - 1),
    wrap=st.sampled_from(sorted(WRAPS)),
    places=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
)
def test_wrong_weights(family: Family, edit: str, odd: int, wrap: str, places: tuple[int, int]):
    model = family.build()
    weights = {key: torch.randn(value.shape).to(value.dtype) for key, value in model.state_dict().items()}
    keys = sorted(weights)
    EDITS[edit](weights, *(keys[place % len(keys)] for place in places), ODD[odd])
    before = copy.deepcopy(model.state_dict())
    with empty_folder() as folder:
        path = folder / 'weights.pth'
        torch.save(WRAPS[wrap](weights), path)
        is_accepted, _ = attempt(model.load_official, path)
    expected = {key: value.to(before[key].dtype) for key, value in weights.items()} if is_accepted else before
    assert is_equal(model.state_dict(), expected)
