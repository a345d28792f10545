"""Partitioning: what is known about which rows share a partition, and when that spares an exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ops.expressions.expr import Column
from ..ops.project import Project


@dataclass(frozen=True)
class Hashed:
    """Rows lie where the hash of these columns, in this order, puts them among ``count`` partitions."""

    keys: tuple[str, ...]
    count: int

    def renamed(self, names: Mapping[str, str]) -> Hashed | None:
        """Return the same under the columns' new names; None if one has no new name."""
        if not all(key in names for key in self.keys):
            return None
        return Hashed(tuple(names[key] for key in self.keys), self.count)


#: None: nothing is known
Partitioning = Hashed | None


def through_project(known: Partitioning, project: Project) -> Partitioning:
    """Return what is left of it after a projection, which may rename or drop the columns."""
    return None if known is None else known.renamed(new_names(project))


def new_names(project: Project) -> dict[str, str]:
    """Return the new name of each column that a projection keeps; the first of several."""
    names: dict[str, str] = {}
    for name, expr in project.exprs:
        if isinstance(expr, Column):
            names.setdefault(expr.name, name)
    return names


def gathers(known: Partitioning, keys: Sequence[str]) -> bool:
    """Return whether rows that agree on ``keys`` are sure to share a partition.

    Example:
        >>> gathers(Hashed(("a",), 8), ["a", "b"]), gathers(Hashed(("a", "b"), 8), ["a"])
        (True, False)
    """
    return known is not None and set(known.keys) <= set(keys)


def positions(known: Partitioning, keys: Sequence[str]) -> tuple[int, ...] | None:
    """Return where in a join's ``keys`` the hashed columns stand; None if they aren't all among them."""
    if known is None or not gathers(known, keys):
        return None
    return tuple(list(keys).index(key) for key in known.keys)
