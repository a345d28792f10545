"""RangeSource: consecutive integers, made where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import ParameterError
from ..ops.expressions.expr import Expr
from ..ops.kernel import MORSEL_ROWS
from ..ops.source import Source, Split
from .file_source import rows_only
from .sizes import check_positive, cut_evenly, even_cuts

#: rows of a partition, where the user doesn't say how many there are
PARTITION_ROWS = 8 << 20

_SCHEMA = pa.schema([("id", pa.int64())])


class RangeSource(Source):
    """The integers of a Python range, in one column, ``id``. Made by `range_source`."""

    kind = "range"

    def __init__(self, numbers: range, partitions: int | None):
        self.numbers = numbers
        self.partitions = partitions

    @property
    def schema(self) -> pa.Schema:
        return _SCHEMA

    def identity(self) -> Any:
        return (self.kind, self.numbers.start, self.numbers.stop, self.numbers.step, self.partitions)

    def splits(self) -> Sequence[Split]:
        rows = len(self.numbers)
        cuts = even_cuts(rows, self.partitions) if self.partitions else cut_evenly(rows, PARTITION_ROWS)
        return [
            Split(i, stop - start, 8 * (stop - start), detail=(start, stop))
            for i, (start, stop) in enumerate(cuts)
        ]

    def read(
        self, split: Split, columns: Sequence[str], predicate: Expr | None = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        first, stop = split.detail
        stop = stop if limit is None else min(stop, first + limit)
        start, step = self.numbers.start, self.numbers.step
        for low in range(first, stop, MORSEL_ROWS):
            rows = np.arange(low, min(low + MORSEL_ROWS, stop), dtype=np.int64)
            if columns:
                yield pa.Table.from_arrays([pa.array(start + step * rows)], schema=_SCHEMA)
            else:
                yield rows_only(len(rows))

    def describe(self) -> str:
        start, stop, step = self.numbers.start, self.numbers.stop, self.numbers.step
        return f"range({start}, {stop}{f', {step}' if step != 1 else ''})"


def range_source(
    start: int, stop: int | None = None, step: int = 1, *, partitions: int | None = None
) -> RangeSource:
    """Make a source of consecutive integers: one column, ``id`` (int64).

    Args:
        start, stop, step: as for Python's ``range``; one argument is the stop.
        partitions: how many; None makes partitions of 8 Mi rows.

    Raises:
        ParameterError: not integers, out of int64's range, or a step of 0.

    Example:
        >>> source = range_source(0, 10, 5, partitions=1)
        >>> [t.to_pydict() for s in source.splits() for t in source.read(s, ["id"])]
        [{'id': [0, 5]}]
    """
    check_positive("range", partitions=partitions)
    start, stop = (0, start) if stop is None else (start, stop)
    for name, value in (("start", start), ("stop", stop), ("step", step)):
        if (
            isinstance(value, bool)
            or not isinstance(value, int | np.integer)
            or not -(2**63) <= value < 2**63
        ):
            raise ParameterError(f"range: {name} must be an integer that fits int64, not {value!r}.")
    if step == 0:
        raise ParameterError("range: step must not be 0. Write 1 to count up, -1 to count down.")
    return RangeSource(range(int(start), int(stop), int(step)), partitions)
