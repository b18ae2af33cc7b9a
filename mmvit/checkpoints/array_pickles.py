"""Reading detectron2's ``.pkl`` files: NumPy arrays in plain containers, without running anything.

pickletools splits the file into its operations, and this module carries out those that build arrays and containers.
No name in the file is imported: the few that are known stand for functions of this module.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = 'biuf'  # kinds of NumPy type: truth values, signed and unsigned whole numbers, floats


class RefusedPickleError(Exception):
    """A pickle asks for something other than arrays in plain containers. The message names it."""


def read_array_pickle(path: Path) -> Any:
    """The dicts, lists, tuples, texts, numbers and arrays of a pickle.

    Raises:
        RefusedPickleError: It holds anything else.
        ValueError: It is damaged.
    """
    with path.open('rb') as file:
        return _Machine().run(file)


@dataclass
class _Type:
    """A NumPy type while it is put together. pickle gives its byte order after it."""

    name: str
    order: Any = '='

    def restore(self, state: tuple) -> None:
        self.order = _text(state[1])

    def finished(self) -> np.dtype:
        dtype = np.dtype(self.name) if self.name[:1] in NUMBERS and self.name[1:].isdigit() else None
        if dtype is None:
            raise RefusedPickleError(f'an array of type {self.name!r}')
        return dtype.newbyteorder(self.order.replace('|', '='))


@dataclass
class _Array:
    """An array while it is put together. pickle gives its content after it."""

    value: np.ndarray | None = None

    def restore(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, 'F' if is_fortran else 'C')

    def finished(self) -> np.ndarray:
        if self.value is None:
            raise ValueError('an array has no content')
        return self.value


def _array(data: Any, dtype: _Type, shape: tuple[int, ...], order: Any = 'C') -> np.ndarray:
    kind = dtype.finished()
    flat = np.frombuffer(_bytes(data), kind)
    if prod(shape) != len(flat):
        raise ValueError(f'an array of shape {shape} has {len(flat)} values')
    native = flat.astype(flat.dtype.newbyteorder('='))  # a copy, in the machine's byte order
    return native.reshape(shape, order=order)


def _bytes(data: Any) -> bytes | bytearray:
    """Python 2 and protocol 2 store bytes as text, a byte a letter."""
    if isinstance(data, str):
        return data.encode('latin-1')
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f'an array has a {type(data).__name__} for content')
    return data


def _text(text: bytes | str) -> str:
    return text.decode('latin-1') if isinstance(text, bytes) else text


NUMPY: dict[str, Callable[..., Any]] = {  # in the core of NumPy, which has had two names
    'multiarray._reconstruct': lambda *_: _Array(),
    'multiarray.scalar': lambda dtype, data: _Array(_array(data, dtype, ())),
    'numeric._frombuffer': lambda data, dtype, shape, order: _Array(_array(data, dtype, shape, order)),
}
# What the names in a file stand for.
KNOWN: dict[str, Callable[..., Any]] = {
    'numpy.ndarray': _Array,
    'numpy.dtype': lambda name, *_: _Type(_text(name)),
    '_codecs.encode': lambda text, encoding: text.encode('latin-1'),
    '__builtin__.bytes': lambda: b'',  # protocol 2 for no bytes
    'collections.OrderedDict': dict,
    **{f'numpy.{core}.{name}': function for core in ('core', '_core') for name, function in NUMPY.items()},
}


def _known(name: str) -> Callable[..., Any]:
    if name not in KNOWN:
        raise RefusedPickleError(name)
    return KNOWN[name]


class _Machine:
    """pickle's stack machine, with the operations that arrays in plain containers need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Any) -> Any:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == 'STOP':
                return self.stack.pop()
            self.do(operation.name, argument)
        raise ValueError('the pickle has no end')

    def do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in LITERALS:
            stack.append(argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            size = TUPLES[name]
            stack[len(stack) - size :] = [tuple(stack[len(stack) - size :])]
        elif name == 'MARK':
            self.marks.append(len(stack))
        elif name == 'TUPLE':
            stack.append(tuple(self.above_mark()))
        elif name in ('SETITEM', 'SETITEMS'):
            items = self.above_mark() if name == 'SETITEMS' else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], _whole(items[1::2]), strict=True))
        elif name in ('APPEND', 'APPENDS'):
            items = self.above_mark() if name == 'APPENDS' else [stack.pop()]
            stack[-1].extend(_whole(items))
        elif name in ('GLOBAL', 'STACK_GLOBAL'):
            words = argument.split(' ') if name == 'GLOBAL' else [stack.pop(-2), stack.pop()]
            stack.append(_known('.'.join(words)))
        elif name == 'REDUCE':
            arguments = stack.pop()
            stack.append(stack.pop()(*arguments))
        elif name == 'BUILD':
            state = stack.pop()
            stack[-1].restore(state)
        elif name in ('MEMOIZE', 'BINPUT', 'LONG_BINPUT', 'PUT'):
            self.memo[len(self.memo) if name == 'MEMOIZE' else argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET', 'GET'):
            stack.append(self.memo[argument])
        elif name not in ('PROTO', 'FRAME'):
            raise RefusedPickleError(f"pickle's operation {name}")

    def above_mark(self) -> list[Any]:
        mark = self.marks.pop()
        above, self.stack[mark:] = self.stack[mark:], []
        return above


CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
EMPTY: dict[str, Callable[[], Any]] = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
LITERALS = {
    *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'FLOAT', 'BINFLOAT'),
    *('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
    *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
}


def _whole(items: list[Any]) -> list[Any]:
    """The items with whole arrays."""
    return [item.finished() if isinstance(item, _Array) else item for item in items]
