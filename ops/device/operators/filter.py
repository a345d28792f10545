"""DeviceFilter: the rows for which a predicate is true, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import pyarrow as pa

from ...expressions.call import call
from ...filter import FilterKernel
from ...kernel import Broadcast, Context
from ..arrays.compaction import compact_table
from ..column import physical_type
from ..device_kernel import DeviceStream, Lowered, lowers
from ..fused.fusion import FusedPlan, lower_expressions
from ..fused.words import Tables
from ..table import DeviceTable
from .chain import RowChain, chain_of
from .filter_project import RowStep, run_steps
from .links import Keep


@dataclass(frozen=True)
class DeviceFilter(RowStep):
    """Keeps the rows for which the predicate is true; a table of which all are kept isn't copied.

    Traffic: see `chain`.

    Attributes:
        plan: computes the predicate, null as false.
        chain: the filter as one.
    """

    plan: FusedPlan
    chain: RowChain

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        yield from run_steps([self], self.chain, inputs[0])

    def alone(self, table: DeviceTable, xp: ModuleType, tables: Tables) -> DeviceTable:
        return compact_table(table, self.plan.run(table, xp, tables)[0].values, xp)

    @property
    def link(self) -> Keep:
        return Keep(self.plan.exprs[0])

    @property
    def ends(self) -> tuple[pa.Schema, pa.Schema]:
        return self.plan.schema, self.plan.schema


@lowers(FilterKernel)
def lower_filter(kernel: FilterKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Plan a filter, if its predicate has a form in a kernel and its columns have one on a device."""
    source = schemas[0]
    for field in source:
        if physical_type(field.type) is None:
            return f"the column {field.name!r} of {field.type} has no form there"
    plan = lower_expressions([call("fill_null", kernel.predicate, False)], source)
    if isinstance(plan, str):
        return plan
    chain = chain_of(source, [Keep(plan.exprs[0])], source)
    return chain if isinstance(chain, str) else DeviceFilter(plan, chain)
