"""Fusion: several expressions as one kernel that reads each column once and writes each result once.

Traffic: for each row, the bytes of every column read, of its validity where it has one, and of every result and its
validity where it may be null; nothing in between touches memory. A thread takes 4 rows a block's width apart, so
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

from ...errors import HeadwaterError, TypeMismatchError
from ..backend import Array
from ..expressions.expr import Alias, Column, Expr, evaluate_column
from ..expressions.folding import fold_constants
from . import column as columns_of
from . import fused  # noqa: F401  (its rules)
from .column import DeviceColumn, physical_type
from .fused.emitter import Argument, Emitter, Term
from .fused.lowering import output
from .fused.types import Refused, c_type
from .fused.words import Tables
from .modules import THREADS, generated, launch, on_device, sources
from .table import DeviceTable, to_arrow

#: rows that a thread takes
EACH = 4
#: results of one kernel, and pointers and numbers that it takes, of 8 bytes each in 4096
_RESULTS, _MOST = 64, 500


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
            args: list[object] = [self._argument(each, table, tables, xp) for each in program.arguments]
        except HeadwaterError:  # of a word that a row has; the host says it of the row
            self._raise(table)
        results = []
        for type, term in zip(self.types, program.terms):
            values = xp.empty(table.rows, dtype=physical_type(type))
            valid = None if term.valid == "true" else xp.empty(table.rows, dtype=bool)
            words = None if term.words is None else tables.words(term.words)
            args += [values] if valid is None else [values, valid]
            results.append(DeviceColumn(type, values, valid, words))
        failed = xp.zeros(1, dtype=np.int32) if program.fails else None
        args += [np.int64(table.rows)] if failed is None else [failed, np.int64(table.rows)]
        launch(generated(xp, program.code, "fused"), table.rows, args, each=EACH)
        if failed is not None and int(failed[0]):
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

    def _argument(self, argument: Argument, table: DeviceTable, tables: Tables, xp: ModuleType) -> Array:
        if argument.kind == "constant":
            return argument.of
        if argument.kind == "table":
            return tables.array(*argument.of)  # type: ignore[misc]
        column = table.column(str(argument.of))
        return xp.ascontiguousarray(column.values if argument.kind == "values" else column.valid)

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


class TooManyError(Refused):
    """A kernel would be given more than it can be."""


class CheckFailedError(HeadwaterError):
    """A condition held that was to hold in no row; who asked for the check says what it means."""


@dataclass(frozen=True)
class Program:
    """A kernel's source, and what it is given: arguments, then results, then how many rows.

    Attributes:
        code: CUDA C with a kernel named ``fused``.
        arguments: in order.
        terms: of the results; a validity is written where it isn't "true".
        fails: whether a number is handed over that the kernel sets where the host would raise.
    """

    code: str
    arguments: tuple[Argument, ...]
    terms: tuple[Term, ...]
    fails: bool


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
    declared, stores = [argument.text for argument in emit.arguments.values()], []
    for at, term in enumerate(terms):
        declared.append(f"{c_type(term.type)} *__restrict__ o{at}")
        if term.valid == "true":
            stores.append(f"o{at}[i] = {term.value};")
            continue
        declared.append(f"bool *__restrict__ n{at}")
        stores.append(f"o{at}[i] = {term.valid} ? {term.value} : ({c_type(term.type)})0;")
        stores.append(f"n{at}[i] = {term.valid};")
    if emit.fails:
        declared.append("int *__restrict__ failed")
    if len(declared) > _MOST:
        raise TooManyError("it takes more columns and constants than a kernel can")
    body = "\n    ".join([*emit.lines, *stores])
    names = ", ".join(["i", *(text.split()[-1] for text in declared)])
    code = f"""{sources()["expressions"]}
static __device__ __forceinline__ void row({", ".join(["const long long i", *declared])}) {{
    {body}
}}

extern "C" __global__ void fused({", ".join([*declared, "const long long rows"])}) {{
    const long long start = (long long)blockIdx.x * {EACH * THREADS}, first = start + threadIdx.x;
    if (start + {EACH * THREADS} <= rows) {{
        #pragma unroll
        for (int k = 0; k < {EACH}; ++k) row({names.replace("i, ", f"first + k * {THREADS}, ", 1)});
    }} else {{
        for (long long at = first; at < rows; at += {THREADS}) row({names.replace("i, ", "at, ", 1)});
    }}
}}
"""
    return Program(code, tuple(emit.arguments.values()), terms, emit.fails)


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
