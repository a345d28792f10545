"""DeviceFilter: the rows for which a predicate is true, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ..backend import array_namespace
from ..expressions.call import call
from ..filter import FilterKernel
from ..kernel import Broadcast, Context
from .column import physical_type
from .compaction import compact_table
from .fused.words import Tables
from .fusion import FusedPlan, lower_expressions
from .memory import split_on_oom
from .operators import DeviceKernel, DeviceStream, Lowered, lowers
from .table import DeviceTable


@dataclass(frozen=True)
class DeviceFilter(DeviceKernel):
    """Keeps the rows for which the predicate is true; a table of which all are kept isn't copied.

    Traffic: the predicate's columns and one byte of mask a row; then what `compact_table` moves.

    Attributes:
        plan: computes the predicate, null as false.
    """

    plan: FusedPlan

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp = array_namespace()
        tables = Tables(xp)

        def kept(table: DeviceTable) -> DeviceTable:
            return compact_table(table, self.plan.run(table, xp, tables)[0].values, xp)

        for table in inputs[0]:
            for part in split_on_oom(table, kept):
                if part.rows:
                    yield table if part.rows == table.rows else part


@lowers(FilterKernel)
def lower_filter(kernel: FilterKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Plan a filter, if its predicate has a form in a kernel and its columns have one on a device."""
    for field in schemas[0]:
        if physical_type(field.type) is None:
            return f"the column {field.name!r} of {field.type} has no form there"
    plan = lower_expressions([call("fill_null", kernel.predicate, False)], schemas[0])
    return plan if isinstance(plan, str) else DeviceFilter(plan)
