"""DeviceTransform: rows changed by a fitted preparation step on a device, in one kernel a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa

from ...backend import array_namespace
from ...kernel import Broadcast, Context
from ...prep import Step
from ...transform import TransformKernel
from ..column import physical_type
from ..device_kernel import DeviceKernel, DeviceStream, Lowered, lowers
from ..fused.fusion import CheckFailedError, FusedPlan, lower_expressions
from ..fused.words import Tables
from ..memory import split_on_oom
from ..table import DeviceTable, to_arrow, to_device
from .prepared import prepared_column, unprepared


@dataclass(frozen=True)
class DeviceTransform(DeviceKernel):
    """Applies a step to each table; columns that the step doesn't name are handed on, without a copy.

    Traffic: the step's columns once, and what they become once.

    Attributes:
        step: what to do; its state is the second input.
        schema: of the rows.
    """

    step: Step
    schema: pa.Schema

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        rows, state = inputs
        name = f"prepared {type(self.step).__name__} {self.step.parameters()!r}"
        prepared = state.once(name, lambda: self.step.prepare(state.table()))
        plan = state.once(f"fused {name} over {self.schema}", lambda: self._plan(prepared))
        schema = self.step.output_schema(self.schema)
        xp = array_namespace()
        tables = Tables(xp)
        for table in rows:
            yield from split_on_oom(table, lambda part: self._apply(part, plan, prepared, schema, xp, tables))

    def _plan(self, prepared: Any) -> FusedPlan | str:
        exprs, checks = [], []
        for field in self.schema:
            if field.name in self.step.columns:
                made = prepared_column(self.step, field, prepared)
                exprs += made.exprs
                checks += made.checks
        return lower_expressions(exprs, self.schema, checks)

    def _apply(
        self,
        table: DeviceTable,
        plan: FusedPlan | str,
        prepared: Any,
        schema: pa.Schema,
        xp: ModuleType,
        tables: Tables,
    ) -> DeviceTable:
        if isinstance(plan, str):  # a state that types alone didn't tell
            return to_device(self.step.apply(to_arrow(table), prepared), xp)
        try:
            changed = iter(plan.run(table, xp, tables))
        except CheckFailedError:
            self.step.apply(
                to_arrow(table.select([n for n in self.schema.names if n in self.step.columns])), prepared
            )
            raise
        columns = []
        for field, column in zip(self.schema, table.columns):
            if field.name in self.step.columns:
                columns += [next(changed) for _ in self.step.fields(field)]
            else:
                columns.append(column)
        return DeviceTable(tuple(columns), schema, table.rows)


@lowers(TransformKernel)
def lower_transform(kernel: TransformKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Plan a step's transform, if the step has a form for its columns and the others have one on a device."""
    step, schema = kernel.step, schemas[0]
    for field in schema:
        if field.name in step.columns:
            why = unprepared(step, field)
            if why is not None:
                return why
        elif physical_type(field.type) is None:
            return f"the column {field.name!r} of {field.type} has no form there"
    return DeviceTransform(step, schema)  # type: ignore[arg-type]
