"""Pickling: functions and what they carry, by value, with the names of the files they were written in.

Cloudpickle 3.1.3 and later leave file names out, and with them the lines that a user sees in a traceback.
"""

from __future__ import annotations

import io
import types
from collections import ChainMap
from typing import Any, ClassVar

import cloudpickle

_NAMELESS = "<dynamic-code>"
_reduce_code = cloudpickle.Pickler.dispatch_table[types.CodeType]


def dumps(value: Any) -> bytes:
    """Pickle anything that cloudpickle can; read it back with ``pickle.loads``.

    Example:
        >>> import pickle
        >>> one_more = lambda x: x + 1
        >>> copy = pickle.loads(dumps(one_more))
        >>> copy(1), copy.__code__.co_filename == one_more.__code__.co_filename
        (2, True)
    """
    with io.BytesIO() as file:
        _Pickler(file).dump(value)
        return file.getvalue()


def _reduce_named_code(code: types.CodeType) -> tuple[Any, ...]:
    make, arguments, *state = _reduce_code(code)
    named = tuple(code.co_filename if a == _NAMELESS else a for a in arguments)
    return make, named, *state


class _Pickler(cloudpickle.Pickler):
    dispatch_table: ClassVar[Any] = ChainMap(
        {types.CodeType: _reduce_named_code}, cloudpickle.Pickler.dispatch_table
    )
