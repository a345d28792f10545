"""Nested: the functions of the namespaces ``.list`` and ``.struct``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .operators import call

if TYPE_CHECKING:
    from .expr import Expr


class ListNamespace:
    """Functions of list expressions; null for null."""

    def __init__(self, expr: Any):
        self._expr = expr

    def len(self) -> Expr:
        """The number of items, int64."""
        return call("list.len", self._expr)

    def get(self, index: int) -> Expr:
        """The item at a position, negative ones counted from the end; null if there is none."""
        return call("list.get", self._expr, index=index)

    def contains(self, value: Any) -> Expr:
        """Whether an item equals a constant; null items equal nothing."""
        return call("list.contains", self._expr, value)

    def join(self, separator: str) -> Expr:
        """The items, strings, with a text between them; null items are left out."""
        return call("list.join", self._expr, separator=separator)


class StructNamespace:
    """Functions of struct expressions."""

    def __init__(self, expr: Any):
        self._expr = expr

    def field(self, name: str) -> Expr:
        """The field of that name; null where the struct is."""
        return call("struct.field", self._expr, name=name)
