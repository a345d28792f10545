"""Hive partitioning: columns that stand in folder names, as ``year=2024/month=1``."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

from ..errors import SchemaMismatchError

NULL = "__HIVE_DEFAULT_PARTITION__"

Pairs = tuple[tuple[str, str], ...]

_INTEGER = re.compile(r"-?\d{1,19}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class HiveColumns:
    """The hive columns of a dataset: names, types, and how text becomes a value.

    Example:
        >>> hive = HiveColumns.infer({"a": (("year", "2024"),), "b": (("year", NULL),)})
        >>> hive.schema.field("year").type, hive.values((("year", "2024"),))
        (DataType(int64), (2024,))
    """

    schema: pa.Schema

    @classmethod
    def infer(cls, files: Mapping[str, Pairs]) -> HiveColumns:
        """Infer each key's type over all files: int64, else date32 (YYYY-MM-DD), else string.

        Args:
            files: for each path its keys and texts, from `hive_pairs`.

        Raises:
            SchemaMismatchError: two files don't have the same keys in the same order.
        """
        paths = iter(files.items())
        first, pairs = next(paths)
        keys = [key for key, _ in pairs]
        for path, other in paths:
            if [key for key, _ in other] != keys:
                raise SchemaMismatchError(
                    f"{path} lies below folders {_shown(other)}, but {first} below {_shown(pairs)}. Files of "
                    "one dataset need the same keys in the same order; pass hive=False to take no columns "
                    "from folders."
                )
        texts = [{pairs[i][1] for pairs in files.values()} - {NULL} for i in range(len(keys))]
        return cls(pa.schema([pa.field(key, _type(seen)) for key, seen in zip(keys, texts)]))

    def values(self, pairs: Pairs) -> tuple[Any, ...]:
        """Return the Python values of one file's texts."""
        return tuple(
            None if text == NULL else _PARSERS.get(field.type, str)(text)
            for field, (_, text) in zip(self.schema, pairs)
        )


_PARSERS: dict[pa.DataType, Callable[[str], Any]] = {
    pa.int64(): int,
    pa.date32(): datetime.date.fromisoformat,
}


def hive_pairs(path: str) -> Pairs:
    """Return the keys and texts of the ``key=value`` folders of a path, URL-decoded.

    Example:
        >>> hive_pairs("year=2024/city=New%20York/part-0.parquet")
        (('year', '2024'), ('city', 'New York'))
    """
    folders = [folder.partition("=") for folder in path.split("/")[:-1]]
    return tuple((unquote(key), unquote(text)) for key, sign, text in folders if sign and key)


def hive_folder(key: str, value: str | None) -> str:
    """Return the folder name of a key and a value's text, URL-encoded.

    Example:
        >>> hive_folder("city", "São Paulo/2"), hive_folder("city", None)
        ('city=S%C3%A3o%20Paulo%2F2', 'city=__HIVE_DEFAULT_PARTITION__')
    """
    return f"{quote(key, safe='')}={NULL if value is None else quote(value, safe='')}"


def _type(texts: set[str]) -> pa.DataType:
    if texts and all(_INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63 for text in texts):
        return pa.int64()
    if texts and all(_DATE.fullmatch(text) and _is_date(text) for text in texts):
        return pa.date32()
    return pa.string()


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _shown(pairs: Pairs) -> str:
    return "/".join(f"{key}={text}" for key, text in pairs) or "without key=value"
