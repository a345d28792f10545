"""Join: rows of two inputs matched on equal keys (null matches nothing, as in SQL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from ..errors import ParameterError, TypeMismatchError, column_not_found, did_you_mean
from ..lineage.graph import Dependency
from .node import Node

HOW = ("inner", "left", "semi", "anti")


@dataclass(frozen=True, eq=False, repr=False)
class Join(Node):
    """Match two inputs on equal keys.

    The output has the left columns, then (inner, left) the right ones without its keys; a right
    column whose name the left has takes ``suffix``. Within a partition, rows stand in left order,
    and matches of one left row in right order.

    Attributes:
        left, right: the inputs.
        left_on, right_on: key columns, pairwise; of one common type.
        how: inner, left, semi (left rows with a match) or anti (left rows without).
        suffix: for right columns whose name is taken.
        strategy: "auto", or "broadcast" or "shuffle" to overrule the planner.
    """

    left: Node
    right: Node
    left_on: tuple[str, ...]
    right_on: tuple[str, ...]
    how: Literal["inner", "left", "semi", "anti"] = "inner"
    suffix: str = "_right"
    strategy: Literal["auto", "broadcast", "shuffle"] = "auto"

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ParameterError(f"join(how={self.how!r}): {did_you_mean(str(self.how), HOW)}")
        if self.strategy not in ("auto", "broadcast", "shuffle"):
            raise ParameterError(
                f"join(strategy={self.strategy!r}): {did_you_mean(str(self.strategy), ('auto', 'broadcast', 'shuffle'))}"
            )
        if len(self.left_on) != len(self.right_on) or not self.left_on:
            raise ParameterError(
                f"join: {len(self.left_on)} left keys {list(self.left_on)} against {len(self.right_on)} right "
                f"keys {list(self.right_on)}. Give the same number, at least one, of each."
            )
        self.check()

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.left, self.right)

    def with_inputs(self, inputs: Sequence[Node]) -> Join:
        return Join(inputs[0], inputs[1], self.left_on, self.right_on, self.how, self.suffix, self.strategy)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE, Dependency.WIDE)

    @property
    def right_columns(self) -> tuple[tuple[str, str], ...]:
        """(right column, output name) for each right column the output has."""
        if self.how in ("semi", "anti"):
            return ()
        taken = set(self.left.schema.names)
        return tuple(
            (name, name + self.suffix if name in taken else name)
            for name in self.right.schema.names
            if name not in self.right_on
        )

    def derive_schema(self) -> pa.Schema:
        left, right = self.left.schema, self.right.schema
        for a, b in zip(self.left_on, self.right_on):
            if a not in left.names:
                raise column_not_found(a, left.names, "join, left side")
            if b not in right.names:
                raise column_not_found(b, right.names, "join, right side")
            if left.field(a).type != right.field(b).type:
                raise TypeMismatchError(
                    f"join: the key {a!r} is {left.field(a).type} on the left and {b!r} is "
                    f"{right.field(b).type} on the right. Cast one, as "
                    f"with_columns({b}=col({b!r}).cast({str(left.field(a).type)!r}))."
                )
        fields = list(left) + [pa.field(out, right.field(name).type) for name, out in self.right_columns]
        names = [field.name for field in fields]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ParameterError(
                f"join: the output would have {duplicates[0]!r} twice, also with the suffix "
                f"{self.suffix!r}. Give another suffix, or rename or drop the column first."
            )
        return pa.schema([pa.field(f.name, f.type) for f in fields])

    def parameters(self) -> Any:
        return (self.left_on, self.right_on, self.how, self.suffix, self.strategy)

    def describe(self) -> str:
        on = ", ".join(a if a == b else f"{a}={b}" for a, b in zip(self.left_on, self.right_on))
        return f"{self.how} on [{on}]" + ("" if self.strategy == "auto" else f" strategy={self.strategy}")
