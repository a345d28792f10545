"""Namespaces: functions of one kind of type, reached as ``.str``, ``.dt``, ``.list`` and ``.struct``."""

from __future__ import annotations

from .nested import ListNamespace, StructNamespace
from .strings import StringNamespace
from .temporal import TemporalNamespace


class Namespaces:
    """The namespaces of an expression."""

    @property
    def str(self) -> StringNamespace:
        """Functions of strings."""
        return StringNamespace(self)

    @property
    def dt(self) -> TemporalNamespace:
        """Functions of dates, timestamps, times and durations."""
        return TemporalNamespace(self)

    @property
    def list(self) -> ListNamespace:
        """Functions of lists."""
        return ListNamespace(self)

    @property
    def struct(self) -> StructNamespace:
        """Functions of structs."""
        return StructNamespace(self)
