"""DeviceProject: columns computed from columns on a device, all in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import pyarrow as pa

from ...backend import array_namespace
from ...expressions.expr import Column, Expr
from ...kernel import Broadcast, Context
from ...project import ProjectKernel
from ..column import physical_type
from ..device_kernel import DeviceStream, Lowered, lowers
from ..fused.fusion import FusedPlan, is_column, lower_expressions
from ..fused.words import Tables
from ..memory import split_on_oom
from ..table import DeviceTable
from .filter_project import RowStep
from .links import Compute


@dataclass(frozen=True)
class DeviceProject(RowStep):
    """Computes expressions; columns that only pass through are handed on, without a copy.

    Traffic: see `fusion`.

    Attributes:
        kept: for each output column the input column that it is, or None if it is computed.
        plan: computes the others, in order.
        schema: of the output.
    """

    kept: tuple[str | None, ...]
    plan: FusedPlan
    schema: pa.Schema

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp = array_namespace()
        tables = Tables(xp)
        for table in inputs[0]:
            yield from split_on_oom(table, lambda part: project_table(part, self, xp, tables))

    def alone(self, table: DeviceTable, xp: ModuleType, tables: Tables) -> DeviceTable:
        return project_table(table, self, xp, tables)

    @property
    def link(self) -> Compute:
        computed = iter(self.plan.exprs)
        return Compute(
            tuple(
                (field.name, next(computed) if name is None else Column(name), field.type)
                for field, name in zip(self.schema, self.kept)
            )
        )

    @property
    def ends(self) -> tuple[pa.Schema, pa.Schema]:
        return self.plan.schema, self.schema


def project_table(table: DeviceTable, project: DeviceProject, xp: ModuleType, tables: Tables) -> DeviceTable:
    """Compute one table."""
    computed = iter(project.plan.run(table, xp, tables))
    columns = tuple(next(computed) if name is None else table.column(name) for name in project.kept)
    return DeviceTable(columns, project.schema, table.rows)


@lowers(ProjectKernel)
def lower_project(kernel: ProjectKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Plan a projection, if all its expressions have a form in a kernel."""
    return project_of(kernel.exprs, kernel.schema, schemas[0])


def project_of(exprs: Sequence[tuple[str, Expr]], schema: pa.Schema, source: pa.Schema) -> Lowered:
    """Plan a projection of named expressions into a schema."""
    kept = tuple(is_column(expr) for _, expr in exprs)
    for name, field in zip(kept, schema):
        if name is not None and (physical_type(field.type) is None or source.field(name).type != field.type):
            return f"the column {name!r} of {field.type} has no form there"
    plan = lower_expressions([expr for (_, expr), name in zip(exprs, kept) if name is None], source)
    if isinstance(plan, str):
        return plan
    computed = [field.type for field, name in zip(schema, kept) if name is None]
    if list(plan.types) != computed:
        return "a column's type isn't its expression's"
    return DeviceProject(kept, plan, schema)
