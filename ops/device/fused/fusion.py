"""Fusion: several expressions as one kernel that reads each column once and writes each result once.

Traffic: for each row, the bytes of every column read, of its validity where it has one, and of every result and its
validity where it may be null; nothing in between touches memory. A thread takes some rows a block's width apart, so
that loads of all of them are on their way before the first is needed. Strings are computed by the host, once for
each value of a dictionary, and read by code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from ....errors import HeadwaterError, TypeMismatchError
from ...expressions.expr import Alias, Column, Expr, evaluate_column
from ...expressions.folding import fold_constants
from .. import column as columns_of
from .. import fused  # noqa: F401  (its rules)
from ..column import DeviceColumn
from ..modules import generated, launch, on_device
from ..table import DeviceTable, to_arrow
from .emitter import Emitter
from .lowering import output
from .programs import Program, TooManyError, over_rows, places
from .types import Refused
from .words import Tables

#: results of one kernel
_RESULTS = 32


@dataclass(frozen=True, eq=False)
class FusedPlan:
    """Expressions that run as one kernel.

    Attributes:
        exprs: what is computed, constants folded.
        schema: of the rows they are over.
        types: of the results.
        checks: conditions that hold in no row; where one does, `run` raises.
    """

    exprs: tuple[Expr, ...]
    schema: pa.Schema
    types: tuple[pa.DataType, ...]
    checks: tuple[Expr, ...] = ()

    @cached_property
    def columns(self) -> list[str]:
        """The columns that are read, in the schema's order."""
        read = frozenset().union(*(expr.columns() for expr in (*self.exprs, *self.checks)))
        return [name for name in self.schema.names if name in read]

    def code(self, nullable: frozenset[str] = frozenset()) -> str:
        """The source of the kernel where these columns come with a validity; of one of the `parts`."""
        return self._program(nullable).code

    def run(self, table: DeviceTable, xp: ModuleType, tables: Tables | None = None) -> list[DeviceColumn]:
        """Compute the expressions.

        Args:
            table: with the plan's columns.
            xp: NumPy or CuPy.
            tables: keeps what was made of dictionaries for the next table of the stream; None keeps nothing.

        Returns:
            A column for each expression, of ``table.rows`` rows. Values equal the host's, to the bit where IEEE 754
            says the bits, and within 3 units in the last place for functions like exp and sin.

        Raises:
            HeadwaterError: what the host raises of these rows.
        """
        if not on_device(xp):
            return self._on_host(table)
        if not self.exprs and not self.checks:
            return []
        tables = (tables or Tables(xp)).bind(table)
        if len(self.parts) > 1:
            return [column for part in self.parts for column in part.run(table, xp, tables)]
        nullable = frozenset(name for name in self.columns if table.column(name).valid is not None)
        program = self._program(nullable)
        try:
            args = program.given(table, tables, xp)
        except HeadwaterError:  # of a word that a row has; the host says it of the row
            self._raise(table)
        results = program.results(list(self.types), table.rows, tables, xp)
        failed = [xp.zeros(1, dtype=np.int32)] if program.fails else []
        args += [*places(results), *failed, np.int64(table.rows)]
        launch(generated(xp, program.code, program.name), table.rows, args, each=program.each)
        if failed and int(failed[0][0]):
            self._raise(table)
        return results

    @cached_property
    def parts(self) -> list[FusedPlan]:
        """Plans that one kernel each computes; the first does the checks."""
        results = len(self.exprs)
        if results <= _RESULTS:
            try:
                self._program(frozenset(self.schema.names))
                return [self]
            except TooManyError:
                if results < 2:
                    raise
        cuts = (slice(0, results // 2), slice(results // 2, results))
        halves = [
            FusedPlan(self.exprs[cut], self.schema, self.types[cut], () if cut.start else self.checks)
            for cut in cuts
        ]
        return [part for half in halves for part in half.parts]

    def _program(self, nullable: frozenset[str]) -> Program:
        return _written(self._key, nullable)

    @cached_property
    def _key(self) -> _Key:
        return _Key(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return FusedPlan, (self.exprs, self.schema, self.types, self.checks)

    def _on_host(self, table: DeviceTable) -> list[DeviceColumn]:
        rows = to_arrow(table.select(self.columns))
        for check in self.checks:
            if np.any(columns_of.to_device(evaluate_column(check, rows), np).values):
                self._raise(table)
        return [
            columns_of.to_device(evaluate_column(expr, rows, type), np)
            for expr, type in zip(self.exprs, self.types)
        ]

    def _raise(self, table: DeviceTable) -> NoReturn:
        """Raise as the host does, by computing the rows there."""
        rows = to_arrow(table.select(self.columns))
        for expr in self.exprs:
            expr.evaluate(rows)
        for check in self.checks:
            if np.any(columns_of.to_device(evaluate_column(check, rows), np).values):
                raise CheckFailedError(f"{check} holds in some rows")
        raise TypeMismatchError(f"{', '.join(map(str, self.exprs))}: a value doesn't fit its type")


class CheckFailedError(HeadwaterError):
    """A condition held that was to hold in no row; who asked for the check says what it means."""


class _Key:
    """A plan that is equal to others of the same text."""

    def __init__(self, plan: FusedPlan):
        self.plan = plan
        fields = tuple((field.name, str(field.type)) for field in plan.schema)
        tokens = tuple(expr.token for expr in (*plan.exprs, *plan.checks))
        self._key = (tokens, len(plan.checks), fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=256)
def _written(key: _Key, nullable: frozenset[str]) -> Program:
    plan = key.plan
    emit = Emitter(plan.schema, nullable)
    terms = tuple(output(emit, expr, type) for expr, type in zip(plan.exprs, plan.types))
    for check in plan.checks:
        term = output(emit, check, pa.bool_())
        emit.fail(emit.every([term.valid, term.value]))
    return over_rows(emit, terms)


def lower_expressions(
    exprs: Sequence[Expr], schema: pa.Schema, checks: Sequence[Expr] = ()
) -> FusedPlan | str:
    """Plan one kernel for expressions, from types alone.

    Args:
        exprs: over the schema.
        schema: of the rows.
        checks: conditions that must hold in no row.

    Returns:
        The plan, or why there is none.

    Example:
        >>> from headwater.ops.expressions import col
        >>> plan = lower_expressions([col("x") * 2 + 1], pa.schema({"x": pa.int32()}))
        >>> plan.types, plan.columns
        ((DataType(int32),), ['x'])
        >>> lower_expressions([col("x").cast("string")], pa.schema({"x": pa.int32()}))
        "`col('x').cast('string')`: a cast from int32 to string is made on the host"
    """
    try:
        types = tuple(expr.infer(schema) for expr in exprs)
        folded = tuple(fold_constants(expr, schema) for expr in exprs)
        tested = tuple(fold_constants(check, schema) for check in checks)
        plan = FusedPlan(folded, schema, types, tested)
        plan.parts  # noqa: B018  (refuses what can't be written)
    except (Refused, HeadwaterError) as error:
        return str(error)
    return plan


def lower_expression(expr: Expr, schema: pa.Schema) -> FusedPlan | str:
    """Plan a kernel for one expression; see `lower_expressions`."""
    return lower_expressions([expr], schema)


def is_column(expr: Expr) -> str | None:
    """Return a column's name, if an expression is one as it stands, aliased or not."""
    while isinstance(expr, Alias):
        expr = expr.children[0]
    return expr.name if isinstance(expr, Column) else None
