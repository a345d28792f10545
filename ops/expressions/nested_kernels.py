"""Nested kernels: what the namespaces ``.list`` and ``.struct`` compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import TypeMismatchError, did_you_mean
from .call import register
from .types import NoCommonTypeError, Value, meet, type_name

_HINT = "Lists come from columns of lists, or from .str.split(',')."


def align_list(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Check that the first value is a list, and bring the second to its items' type."""
    first = values[0]
    if not (pa.types.is_list(first.type) or pa.types.is_fixed_size_list(first.type)):
        raise NoCommonTypeError(f"it takes a list, not {type_name(first.type)}")
    if len(values) == 1:
        return values
    sample = pa.array([], first.type.value_type)
    return [first, meet([sample, values[1]], [False, weak[1]], exact=True)[1]]


def _list(name: str, **properties: Any) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    return register(f"list.{name}", align=align_list, hint=_HINT, **properties)


def _parts(x: Value) -> tuple[np.ndarray, np.ndarray, pa.Array, pa.Array]:
    """Start and length of each list in the items, the items, and which lists are null."""
    if isinstance(x, pa.ChunkedArray):
        x = x.combine_chunks()
    null = pc.is_null(x)
    lengths = pc.fill_null(pc.list_value_length(x), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    return starts, lengths, x.flatten(), null


@_list("len")
def length(x: Value) -> Value:
    """Items."""
    return pc.list_value_length(x).cast(pa.int64())


@_list("get")
def get(x: Value, index: int) -> Value:
    """The item at a position."""
    starts, lengths, items, _ = _parts(x)
    inside = (lengths > index) if index >= 0 else (lengths >= -index)
    places = starts + index if index >= 0 else starts + lengths + index
    return items.take(pa.array(places, mask=~inside))


@_list("contains", strict=False)
def contains(x: Value, value: Value) -> Value:
    """Whether an item equals the value."""
    if not isinstance(value, pa.Scalar):
        raise NoCommonTypeError("it takes a constant")
    _, lengths, items, null = _parts(x)
    equal = pc.fill_null(pc.equal(items.cast(value.type), value), False).to_numpy(zero_copy_only=False)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    found = np.bincount(owners[equal.astype(bool)], minlength=len(lengths)) > 0
    return pa.array(found, mask=null.to_numpy(zero_copy_only=False))


@_list("join")
def join(x: Value, separator: str) -> Value:
    """Items that aren't null, joined."""
    _, lengths, items, null = _parts(x)
    valid = pc.is_valid(items)
    if items.null_count:
        kept = valid.to_numpy(zero_copy_only=False)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        lengths = np.bincount(owners[kept], minlength=len(lengths))
        items = items.drop_null()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pc.binary_join(pa.ListArray.from_arrays(offsets, items, mask=null), separator)


@register("struct.field")
def field(x: Value, name: str) -> Value:
    """A field."""
    if not pa.types.is_struct(x.type):
        raise TypeMismatchError(f".struct.field({name!r}) takes a struct, not {type_name(x.type)}.")
    names = [f.name for f in x.type]
    if name not in names:
        raise TypeMismatchError(
            f".struct.field({name!r}): there is no such field. {did_you_mean(name, names)}"
        )
    return pc.struct_field(x, name)
