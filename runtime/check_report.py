"""CheckReport: what a check of user functions looked at, and the first difference of each that it found."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..lineage.hashing import hash_columns
from ..lineage.suspects import Suspect, Trap
from .display import plural

#: of columns that differ, and characters of a value, in the text
_MOST_COLUMNS, _MOST_CHARACTERS = 5, 60
#: the traps that fit what was seen, likeliest first
_WITHIN = (Trap.STATE, Trap.RANDOM, Trap.TIME, Trap.MEMORY, Trap.THREADS, Trap.IDENTITY)
_BETWEEN = (
    Trap.SET_ORDER,
    Trap.IDENTITY,
    Trap.ENVIRONMENT,
    Trap.TIME,
    Trap.THREADS,
    Trap.RANDOM,
    Trap.MEMORY,
)
_ORDER = (Trap.SET_ORDER, Trap.THREADS)


@dataclass(frozen=True)
class Difference:
    """Two results of a function for the same rows.

    Attributes:
        partition: index of the partition.
        row: first row of the output that differs; None if the function raised in one process only.
        columns: of that row, with both values as text; "(no row)" past the end of the shorter result.
        within_process: the two results are of one process, not of two.
        reordered: the rows are the same in another order.
        error: what the function raised in one of the computations.
    """

    partition: int
    row: int | None
    columns: tuple[tuple[str, str, str], ...] = ()
    within_process: bool = False
    reordered: bool = False
    error: str = ""


@dataclass(frozen=True)
class OperatorCheck:
    """What a check saw of one operator.

    Attributes:
        operator: as ``map_batches(clean)``.
        where: file and line of the user function.
        deterministic: as declared; an operator declared otherwise isn't run.
        partitions: indices of those that were computed.
        of: how many partitions the operator has.
        rows: that it returned for them.
        difference: the first that was found.
        suspects: what the function's code names that could be the cause, likeliest first.
    """

    operator: str
    where: str
    deterministic: bool = True
    partitions: tuple[int, ...] = ()
    of: int = 0
    rows: int = 0
    difference: Difference | None = None
    suspects: tuple[Suspect, ...] = ()

    def __str__(self) -> str:
        head = f"{self.operator} at {_short(self.where)}" if self.where else self.operator
        if not self.deterministic:
            return f"{head}: declared deterministic=False, not run"
        if self.difference is None:
            work = f"{len(self.partitions)} of {plural(self.of, 'partition')}, {plural(self.rows, 'row')}"
            return f"{head}: {work}, the same"
        return f"{head}: partition {self.difference.partition} differs\n" + "\n".join(
            f"    {line}" for line in (*_difference_lines(self.difference), *self._hints())
        )

    def _hints(self) -> list[str]:
        """Name the likely causes; the guess is from names in the code and from how the results differ."""
        assert self.difference is not None
        if self.suspects:
            return [f"likely cause: {s.trap.value}: {s.name} at {_short(s.where)}" for s in self.suspects[:4]]
        kinds = likely_traps(self.difference)
        return [f"likely cause: {', or '.join(trap.value for trap in kinds[:3])}"]


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        operators: those with a user function, inputs first.
    """

    operators: tuple[OperatorCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every checked function gave the same for the same rows."""
        return not self.failed

    @property
    def failed(self) -> tuple[OperatorCheck, ...]:
        """The operators whose function gave different results."""
        return tuple(check for check in self.operators if check.difference is not None)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.operators), self._summary()])

    def _summary(self) -> str:
        checked = [check for check in self.operators if check.deterministic]
        if not checked:
            return "Nothing to check: no user function that should be deterministic."
        partitions = plural(sum(len(check.partitions) for check in checked), "partition")
        rows = plural(sum(check.rows for check in checked), "row")
        work = f"{plural(len(checked), 'operator')}, {partitions}, {rows}, in 2 processes"
        if self.ok:
            return f"No difference found: {work}."
        return (
            f"{plural(len(self.failed), 'operator')} of {len(checked)} gave different results for the same rows: "
            "recovery could not make their partitions again. Make the function depend on its rows alone, or declare "
            "deterministic=False."
        )


def likely_traps(difference: Difference) -> tuple[Trap, ...]:
    """Return what may cause a difference, likeliest first, from how the results differ."""
    first = _ORDER if difference.reordered else ()
    then = _WITHIN if difference.within_process else _BETWEEN
    return (*first, *(trap for trap in then if trap not in first))


def rank(suspects: tuple[Suspect, ...], difference: Difference) -> tuple[Suspect, ...]:
    """Put first the suspects that fit how the results differ."""
    order = {trap: place for place, trap in enumerate(likely_traps(difference))}
    return tuple(sorted(suspects, key=lambda suspect: order.get(suspect.trap, len(order))))


def compare(one: pa.Table, other: pa.Table, partition: int, within_process: bool) -> Difference | None:
    """Find the first row in which two tables of one schema differ.

    Args:
        one, other: the tables.
        partition, within_process: for the result.

    Returns:
        The difference, or None if the tables are equal, NaN and null exact.

    Example:
        >>> compare(pa.table({"x": [1, 2]}), pa.table({"x": [1, 3]}), 0, False).columns
        (('x', '2', '3'),)
    """
    common = min(one.num_rows, other.num_rows)
    masks = {
        name: hash_columns([one.column(name)[:common]], exact=True)
        != hash_columns([other.column(name)[:common]], exact=True)
        for name in one.column_names
    }
    differs = np.logical_or.reduce([np.zeros(common, dtype=bool), *masks.values()])
    if not differs.any() and one.num_rows == other.num_rows:
        return None
    row = int(differs.argmax()) if differs.any() else common
    changed = [name for name, mask in masks.items() if row >= common or mask[row]]
    columns = tuple((name, _value(one, name, row), _value(other, name, row)) for name in changed)
    return Difference(partition, row, columns, within_process, _reordered(one, other))


def _reordered(one: pa.Table, other: pa.Table) -> bool:
    if one.num_rows != other.num_rows or not one.num_columns:
        return False
    hashes = [np.sort(hash_columns(table.columns, exact=True)) for table in (one, other)]
    return bool((hashes[0] == hashes[1]).all())


def _value(table: pa.Table, name: str, row: int) -> str:
    if row >= table.num_rows:
        return "(no row)"
    scalar = table.column(name)[row]
    text = repr(scalar.as_py()) if not pa.types.is_timestamp(scalar.type) else str(pc.cast(scalar, "string"))
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def _difference_lines(difference: Difference) -> list[str]:
    if difference.row is None:
        error = difference.error.partition("\nTraceback (")[0].replace("\n", "\n    ")
        return [f"raised in one computation and not in another: {error}"]
    pair = "two calls in one process" if difference.within_process else "two processes"
    lines = [f"first in row {difference.row:,} of the output, between {pair}:"]
    for name, one, other in difference.columns[:_MOST_COLUMNS]:
        lines.append(f"    {name}: {one}  and  {other}")
    if len(difference.columns) > _MOST_COLUMNS:
        lines.append(f"    and {len(difference.columns) - _MOST_COLUMNS} more columns")
    if difference.reordered:
        lines.append("the rows are the same, in another order")
    return lines


def _short(where: str) -> str:
    """A path as seen from the working folder, if it is below."""
    here = os.getcwd() + os.sep
    return where.removeprefix(here)
