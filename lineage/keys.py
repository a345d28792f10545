"""Lineage keys: the hash of an operator, its parameters, user code, source identity and parents' keys.

Same key, same content. Keys name blocks, so they are the cache key too. The hash must not depend on
the process (no ``id``, no ``hash(str)``, no set order), so values are encoded canonically first:
every value is a type tag, the length of its payload, and the payload. Functions, classes and other
objects are encoded in ``lineage/functions.py``.
"""

from __future__ import annotations

import datetime
import decimal
import struct
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ..errors import SerializationError, TypeMismatchError
from .fingerprint import Fingerprint
from .functions import describe_object


def lineage_key(operator: str, parameters: Any, parents: Iterable[str]) -> str:
    """Hash an operator, its parameters and its parents' keys into a lineage key.

    Args:
        operator: the operator's name.
        parameters: nested tuples, lists, dicts, scalars, Arrow types and schemas, or user functions.
        parents: the parents' lineage keys, in input order.

    Returns:
        32 hexadecimal digits, the same in every process.

    Raises:
        SerializationError: a parameter has no canonical form.

    Example:
        >>> lineage_key("Limit", (5,), ["00"]) == lineage_key("Limit", (5,), ["00"])
        True
    """
    return xxhash.xxh3_128_hexdigest(canonical((operator, parameters, tuple(parents))))


def canonical(value: Any) -> bytes:
    """Encode a value as bytes that are the same in every process, and differ for different values.

    Plain values go by type and value (``1``, ``1.0`` and ``True`` differ; a list and a tuple don't),
    dicts and sets without their order, arrays and tables by content, functions by their code and what
    it reads (see `function_token`), other objects by what pickle would take of them.

    Args:
        value: any value that pickle could take, user functions included.

    Returns:
        The encoding, self-delimiting.

    Raises:
        SerializationError: the value, or something it holds, has no canonical form.

    Example:
        >>> canonical({"a": 1, "b": {2, 3}}) == canonical({"b": {3, 2}, "a": 1})
        True
        >>> canonical(["a", "bc"]) == canonical(["ab", "c"])
        False
    """
    return _Encoder().encode(value)


def function_token(function: Callable[..., Any]) -> bytes:
    """Encode a user function by what decides its result.

    That is: its bytecode, constants, defaults, captured values, and the globals it reads, followed
    into the user's own helpers, classes and modules; what is installed counts by name and version.
    Its name, file and line numbers don't count.

    Args:
        function: a function, lambda, method, partial, class, or object with ``__call__``.

    Returns:
        An encoding, the same in every process of one Python version.

    Raises:
        SerializationError: it captures or reads something that can't be sent to a worker, as a lock.

    Example:
        >>> function_token(lambda x: x + 1) == function_token(lambda x: x + 1)
        True
        >>> function_token(lambda x: x + 1) == function_token(lambda x: x + 2)
        False
    """
    return canonical(function)


def _frame(tag: bytes, payload: bytes) -> bytes:
    return tag + struct.pack("<Q", len(payload)) + payload


def _digest(data: Any) -> bytes:
    return xxhash.xxh3_128_digest(data)


class _Encoder:
    """Encodes one value tree; remembers the objects met, so that cycles and shared parts end."""

    def __init__(self) -> None:
        #: objects being encoded now -> how deep they stand; a cycle is written as that depth
        self.active: dict[int, int] = {}
        #: objects done -> (the object, kept alive so that its id stays its own; its encoding)
        self.done: dict[int, tuple[Any, bytes]] = {}

    def encode(self, value: Any) -> bytes:
        encoder = _ENCODERS.get(type(value))
        if encoder is not None:
            return encoder(self, value)
        for kind, encoder in _FAMILIES:
            if isinstance(value, kind):
                return encoder(self, value)
        return self.encode_object(value)

    def encode_object(self, value: Any) -> bytes:
        """Encode a function, class or other object by the parts that `describe_object` names."""
        if id(value) in self.done:
            return self.done[id(value)][1]
        if id(value) in self.active:
            return _frame(b"^", struct.pack("<Q", self.active[id(value)]))
        self.active[id(value)] = len(self.active)
        try:
            kind, parts = describe_object(value)
            payload = b"".join(self._encode_part(kind, name, part) for name, part in parts)
        finally:
            del self.active[id(value)]
        encoding = _frame(b"o", kind.encode() + b"\0" + _digest(payload))
        self.done[id(value)] = (value, encoding)
        return encoding

    def _encode_part(self, kind: str, name: str, part: Any) -> bytes:
        try:
            return self.encode(name) + self.encode(part)
        except SerializationError as error:
            if not name:
                raise
            raise SerializationError(f"{name}: {error}") from error

    def none(self, value: None) -> bytes:
        return _frame(b"N", b"")

    def boolean(self, value: bool) -> bytes:
        return _frame(b"t", b"\1" if value else b"\0")

    def integer(self, value: int) -> bytes:
        return _frame(b"i", str(value).encode())

    def floating(self, value: float) -> bytes:
        return _frame(b"f", struct.pack("<d", value))

    def string(self, value: str) -> bytes:
        return _frame(b"s", value.encode("utf-8", "surrogatepass"))

    def binary(self, value: bytes) -> bytes:
        return _frame(b"b", bytes(value))

    def sequence(self, value: list[Any] | tuple[Any, ...]) -> bytes:
        return _frame(b"l", b"".join([self.encode(item) for item in value]))

    def mapping(self, value: Mapping[Any, Any]) -> bytes:
        return _frame(b"d", b"".join(sorted(self.encode(k) + self.encode(v) for k, v in value.items())))

    def unordered(self, value: set[Any] | frozenset[Any]) -> bytes:
        return _frame(b"u", b"".join(sorted(self.encode(item) for item in value)))

    def number(self, value: decimal.Decimal) -> bytes:
        return _frame(b"D", str(value).encode())

    def moment(self, value: datetime.date | datetime.time) -> bytes:
        return _frame(
            b"m", f"{type(value).__name__} {value.isoformat()} {getattr(value, 'tzinfo', None)}".encode()
        )

    def duration(self, value: datetime.timedelta) -> bytes:
        return _frame(b"r", struct.pack("<qqq", value.days, value.seconds, value.microseconds))

    def enumeration(self, value: Enum) -> bytes:
        return _frame(b"e", self.sequence((type(value).__qualname__, value.name, value.value)))

    def arrow_type(self, value: pa.DataType) -> bytes:
        return _frame(b"A", str(value).encode())

    def arrow_field(self, value: pa.Field) -> bytes:
        return _frame(b"F", self.sequence((value.name, value.type, value.nullable)))

    def arrow_schema(self, value: pa.Schema) -> bytes:
        return _frame(b"S", self.sequence(tuple(value)))

    def arrow_scalar(self, value: pa.Scalar) -> bytes:
        return _frame(b"x", self.arrow_array(pa.repeat(value, 1)))

    def arrow_array(self, value: pa.Array | pa.ChunkedArray) -> bytes:
        return _frame(b"v", self.arrow_table(pa.table([value], names=[""])))

    def arrow_table(self, value: pa.Table | pa.RecordBatch) -> bytes:
        table = pa.Table.from_batches([value]) if isinstance(value, pa.RecordBatch) else value
        try:
            content = Fingerprint(table.schema).update(table).hexdigest()
        except TypeMismatchError:  # dictionaries, views: no row hash, so the bytes of a stream
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            content = _digest(memoryview(sink.getvalue())).hex()
        return _frame(b"T", self.sequence((table.schema, content)))

    def numpy_array(self, value: np.ndarray | np.generic) -> bytes:
        if value.dtype.hasobject:
            content: Any = np.asarray(value).tolist()
        else:
            content = _digest(np.ascontiguousarray(value).tobytes())
        return _frame(b"a", self.sequence((str(value.dtype), value.shape, content)))


_ENCODERS: dict[type, Callable[[_Encoder, Any], bytes]] = {
    type(None): _Encoder.none,
    bool: _Encoder.boolean,
    int: _Encoder.integer,
    float: _Encoder.floating,
    str: _Encoder.string,
    bytes: _Encoder.binary,
    list: _Encoder.sequence,
    tuple: _Encoder.sequence,
    dict: _Encoder.mapping,
    set: _Encoder.unordered,
    frozenset: _Encoder.unordered,
    decimal.Decimal: _Encoder.number,
    datetime.date: _Encoder.moment,
    datetime.datetime: _Encoder.moment,
    datetime.time: _Encoder.moment,
    datetime.timedelta: _Encoder.duration,
}
_FAMILIES: list[tuple[type | tuple[type, ...], Callable[[_Encoder, Any], bytes]]] = [
    (Enum, _Encoder.enumeration),
    (pa.DataType, _Encoder.arrow_type),
    (pa.Field, _Encoder.arrow_field),
    (pa.Schema, _Encoder.arrow_schema),
    (pa.Scalar, _Encoder.arrow_scalar),
    ((pa.Array, pa.ChunkedArray), _Encoder.arrow_array),
    ((pa.Table, pa.RecordBatch), _Encoder.arrow_table),
    ((np.ndarray, np.generic), _Encoder.numpy_array),
]
