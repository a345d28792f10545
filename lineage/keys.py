"""Lineage keys: the hash of an operator, its parameters, user code, source identity and parents' keys.

Same key, same content. Keys name blocks, so they are the cache key too. The hash must not depend on
the process (no ``id``, no ``hash(str)``, no set order), so values are encoded canonically first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import xxhash


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
    """Encode a value as bytes that are the same in every process (stub; see docs/design/0001-spine.md)."""
    return repr(value).encode()


def function_token(function: Callable[..., Any]) -> bytes:
    """Encode a user function by its code, defaults, closure and the globals it reads (stub)."""
    return repr(function).encode()
