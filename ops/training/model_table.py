"""The model as a table: parameters, the optimizer's state, history and what is known of it, to the bit.

One row for each array, or for each piece of 64 MiB of it, so that a batch of rows is never much larger. Rows come in a
fixed order, so that equal models are equal tables. Arrays that come back are views of the table where that can be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import CorruptFileError, SerializationError, TypeMismatchError
from ..backend import to_host

#: what a `Train` node gives
#:
#: part: "about" (text is JSON), "params" or "optimizer" (an array's piece), "history" (data is an Arrow stream)
#: path: an array's name in its tree, as ``layers.0.weight``; empty for the row whose text is the tree itself
#: chunk: number of the piece, from 0
MODEL_SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("path", pa.string()),
        ("chunk", pa.int64()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("data", pa.binary()),
        ("text", pa.string()),
    ]
)

#: most bytes of an array in one row, and about as many in one batch of rows
CHUNK_BYTES = 64 << 20
_PARTS = ("about", "params", "optimizer", "history")


@dataclass(frozen=True)
class FittedModel:
    """What training leaves.

    Attributes:
        params: the parameters, nested dicts, lists and tuples of arrays; treat the arrays as read-only.
        optimizer: the optimizer's state, arrays by name; empty for those without.
        history: metrics, one row a step or epoch.
        about: plain values: steps, names of the features and whatever the trainer noted.
    """

    params: Any
    optimizer: dict[str, Any] = field(default_factory=dict)
    history: pa.Table = field(default_factory=lambda: pa.table({}))
    about: dict[str, Any] = field(default_factory=dict)


def encode_model(
    params: Any,
    optimizer: Mapping[str, Any] | None = None,
    history: pa.Table | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Write a fitted model as a table.

    Args:
        params: nested dicts, lists and tuples of arrays and numbers; numbers come back as arrays without axes.
            None and texts are kept as they are.
        optimizer: the same, of the optimizer's state.
        history: a table, a dict of metric to its values, or for each step a dict of metric to value.
        about: values that JSON can hold, NumPy numbers too.

    Returns:
        A table of `MODEL_SCHEMA`.

    Raises:
        TypeMismatchError: a leaf that is no array of numbers, or a key that is no text.
        SerializationError: something in ``about`` that JSON can't hold.

    Example:
        >>> table = encode_model({"w": np.array([1.5, -2.0])}, about={"steps": 3})
        >>> decode_model(table).params["w"].tolist(), decode_model(table).about
        ([1.5, -2.0], {'steps': 3})
    """
    batches = _Batches()
    batches.add("about", text=_json(about or {}))
    for part, tree in (("params", params), ("optimizer", dict(optimizer or {}))):
        arrays: list[tuple[str, np.ndarray]] = []
        shape = _flatten(tree, (), arrays)
        batches.add(part, text=_json(shape))
        for path, array in arrays:
            batches.add_array(part, path, array)
    batches.add("history", data=_stream(_history_table(history)))
    return batches.table()


def decode_model(table: pa.Table) -> FittedModel:
    """Read what `encode_model` wrote.

    Args:
        table: of `MODEL_SCHEMA`, its rows in their order.

    Returns:
        The model; arrays of one piece are views of the table's memory, and read-only.

    Raises:
        CorruptFileError: the rows aren't a model, or not all of it.
    """
    if table.schema.names != MODEL_SCHEMA.names:
        raise CorruptFileError(
            f"this is no model: its columns are {', '.join(table.schema.names)}, and a model's are "
            f"{', '.join(MODEL_SCHEMA.names)}."
        )
    try:
        rows = list(_rows(table))
        texts = {row["part"]: row["text"] for row in rows if not row["path"] and row["text"] is not None}
        trees = {
            part: _unflatten(json.loads(texts[part]), _arrays(rows, part)) for part in ("params", "optimizer")
        }
        stream = next(row["data"] for row in rows if row["part"] == "history")
        history = pa.ipc.open_stream(stream).read_all()
        return FittedModel(trees["params"], trees["optimizer"], history, json.loads(texts["about"]))
    except (KeyError, IndexError, ValueError, TypeError, StopIteration, pa.ArrowException) as error:
        raise CorruptFileError(
            f"this isn't a whole model ({type(error).__name__}: {error}). Give all rows of a model, in their order."
        ) from error


def digest(fitted: FittedModel) -> str:
    """Return the SHA-256 of all parameters and of the optimizer's state, by name: 64 hexadecimal digits.

    Example:
        >>> digest(FittedModel({"w": np.zeros(2)})) == digest(FittedModel({"w": np.zeros(3)}))
        False
    """
    hasher = hashlib.sha256()
    for part, tree in (("params", fitted.params), ("optimizer", fitted.optimizer)):
        arrays: list[tuple[str, np.ndarray]] = []
        shape = _flatten(tree, (), arrays, by_name=True)
        hasher.update(f"{part} {_json(shape)}\n".encode())
        for path, array in arrays:
            hasher.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
            hasher.update(_bytes(array))
    return hasher.hexdigest()


# -- trees ---------------------------------------------------------------------------------------------


def _flatten(
    tree: Any, path: tuple[str, ...], arrays: list[tuple[str, np.ndarray]], by_name: bool = False
) -> Any:
    """Append a tree's arrays, and return the tree for JSON, with each array's number in its place.

    ``["d", [[key, item], …]]`` is a dict, ``["l", [item, …]]`` a list, ``["t", [item, …]]`` a tuple.

    Args:
        tree: what is left to flatten.
        path: its keys so far.
        arrays: (name, array) of those met so far.
        by_name: go through dicts in the order of their keys, not in their own.
    """
    if tree is None or isinstance(tree, str):
        return tree
    if isinstance(tree, Mapping):
        if wrong := [key for key in tree if not isinstance(key, str)]:
            raise TypeMismatchError(
                f"parameters{_at(path)} have the key {wrong[0]!r} ({type(wrong[0]).__name__}). Use texts as keys."
            )
        keys = sorted(tree) if by_name else list(tree)
        return ["d", [[key, _flatten(tree[key], (*path, key), arrays, by_name)] for key in keys]]
    if isinstance(tree, list | tuple):
        items = [_flatten(item, (*path, str(i)), arrays, by_name) for i, item in enumerate(tree)]
        return ["t" if isinstance(tree, tuple) else "l", items]
    array = to_host(tree)
    if array.dtype.kind not in "biufc":
        raise TypeMismatchError(
            f"parameters{_at(path)} are {type(tree).__name__} of dtype {array.dtype}. Parameters are arrays of "
            "numbers; turn a tensor into one with .numpy()."
        )
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
    arrays.append((".".join(path), plain))
    return len(arrays) - 1


def _unflatten(shape: Any, arrays: Sequence[np.ndarray]) -> Any:
    if not isinstance(shape, list):
        return arrays[shape] if isinstance(shape, int) else shape
    kind, items = shape
    if kind == "d":
        return {key: _unflatten(item, arrays) for key, item in items}
    values = [_unflatten(item, arrays) for item in items]
    return tuple(values) if kind == "t" else values


def _at(path: tuple[str, ...]) -> str:
    return f" at {'.'.join(path)!r}" if path else ""


# -- rows ----------------------------------------------------------------------------------------------


class _Batches:
    """Collects rows into batches of about `CHUNK_BYTES`."""

    def __init__(self) -> None:
        self._done: list[pa.RecordBatch] = []
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def add(self, part: str, text: str | None = None, data: Any = None) -> None:
        """Append a row that holds no array."""
        self._append((part, "", 0, None, None, data, text), len(data or text or ""))

    def add_array(self, part: str, path: str, array: np.ndarray) -> None:
        """Append an array, in as many rows as it has pieces; one for an array without values."""
        data = _bytes(array)
        for chunk, start in enumerate(range(0, max(1, len(data)), CHUNK_BYTES)):
            piece = data[start : start + CHUNK_BYTES]
            row = (part, path or "value", chunk, array.dtype.str, list(array.shape), piece, None)
            self._append(row, len(piece))

    def table(self) -> pa.Table:
        """All rows."""
        self._flush()
        return pa.Table.from_batches(self._done, schema=MODEL_SCHEMA)

    def _append(self, row: tuple[Any, ...], size: int) -> None:
        if self._bytes + size > CHUNK_BYTES:
            self._flush()
        self._rows.append(row)
        self._bytes += size

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = [
            _binary(values) if field.name == "data" else pa.array(values, field.type)
            for values, field in zip(zip(*self._rows), MODEL_SCHEMA)
        ]
        self._done.append(pa.RecordBatch.from_arrays(columns, schema=MODEL_SCHEMA))
        self._rows, self._bytes = [], 0


def _binary(values: Sequence[Any]) -> pa.Array:
    """A binary column; of one value it is the value's own memory."""
    if len(values) > 1 or values[0] is None:
        return pa.array([None if value is None else bytes(value) for value in values], pa.binary())
    data = pa.py_buffer(values[0])
    offsets = pa.py_buffer(np.array([0, data.size], np.int32))
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, data])


def _bytes(array: np.ndarray) -> memoryview:
    """A contiguous array's bytes; no copy."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dicts; the data as Arrow buffers, views of the table."""
    for batch in table.to_batches():
        plain = batch.drop_columns(["data"]).to_pylist()
        for row, data in zip(plain, batch.column("data")):
            yield {**row, "data": data.as_buffer() if data.is_valid else None}


def _arrays(rows: Sequence[dict[str, Any]], part: str) -> list[np.ndarray]:
    """The arrays of a part, in order; pieces put together."""
    pieces: list[list[dict[str, Any]]] = []
    for row in rows:
        if row["part"] != part or not row["path"]:
            continue
        if row["chunk"] == 0:
            pieces.append([])
        if row["chunk"] != len(pieces[-1]):
            raise ValueError(f"a piece of {row['path']!r} is missing")
        pieces[-1].append(row)
    return [_array(group) for group in pieces]


def _array(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    dtype, shape = np.dtype(rows[0]["dtype"]), tuple(rows[0]["shape"])
    if sum(row["data"].size for row in rows) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"a piece of {rows[0]['path']!r} is missing")
    if len(rows) > 1:
        whole = np.empty(shape, dtype)
        flat = whole.reshape(-1).view(np.uint8)
        start = 0
        for row in rows:
            flat[start : start + row["data"].size] = np.frombuffer(row["data"], np.uint8)
            start += row["data"].size
        return whole
    if not rows[0]["data"].size:
        return np.empty(shape, dtype)
    return np.require(np.frombuffer(rows[0]["data"], dtype).reshape(shape), requirements="A")


# -- history and about ---------------------------------------------------------------------------------


def _history_table(history: Any) -> pa.Table:
    if isinstance(history, pa.Table):
        return history.combine_chunks()
    if isinstance(history, Mapping):
        return pa.table(dict(history))
    rows = list(history or ())
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _stream(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError) as error:
        raise SerializationError(
            f"what is known of a model has to be plain numbers, texts, lists and dicts: {error}."
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{value!r} is a {type(value).__name__}")
