"""DeviceFilterProject: filters and projections of a stage that follow each other, run as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

import pyarrow as pa

from ....errors import HeadwaterError
from ...backend import array_namespace
from ...kernel import Broadcast, Context
from ...node import listed
from ..device_kernel import DeviceKernel, DeviceStream
from ..fused.words import Tables
from ..memory import split_on_oom
from ..modules import on_device
from ..table import DeviceTable
from .chain import RowChain, chain_of
from .links import Keep, Link


class RowStep(DeviceKernel):
    """A filter or a projection: what may be a part of a chain."""

    def alone(self, table: DeviceTable, xp: ModuleType, tables: Tables) -> DeviceTable:
        """Compute one table without other steps, also on the host; raises what the host raises."""
        raise NotImplementedError

    @property
    def link(self) -> Link:
        """The step as a part of a chain."""
        raise NotImplementedError

    @property
    def ends(self) -> tuple[pa.Schema, pa.Schema]:
        """The schemas of the rows that go in and that come out."""
        raise NotImplementedError


@dataclass(frozen=True)
class DeviceFilterProject(DeviceKernel):
    """Runs filters and projections in one: what isn't needed afterwards is never moved.

    Traffic: see `chain`. Tables of which no row is kept are left out, if there is a filter. Where a row might be
    one that the host raises for, and on the host, the steps are taken one by one.

    Attributes:
        steps: at least two, in order.
        chain: what they are together.
    """

    steps: tuple[RowStep, ...]
    chain: RowChain

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        yield from run_steps(self.steps, self.chain, inputs[0])

    @property
    def label(self) -> str:
        return "+".join(step.label for step in self.steps)

    def describe(self) -> str:
        """Say what runs as one, and which columns that are read don't move."""
        left = self.chain.layout.unmoved
        names = listed([repr(name) for name in left])
        note = f"; {names} {'is' if len(left) == 1 else 'are'} read by the filter alone" if left else ""
        return f"{' and '.join(step.label for step in self.steps)} are one kernel over kept rows{note}"


def run_steps(
    steps: Sequence[RowStep], chain: RowChain, stream: Iterable[DeviceTable | object]
) -> DeviceStream:
    """Run steps over a stream, as a chain where there is a device."""
    xp = array_namespace()
    tables = [Tables(xp) for _ in range(len(steps) + 1)]
    for table in stream:
        assert isinstance(table, DeviceTable)
        for part in split_on_oom(table, lambda rows: rows_of(rows, steps, chain, xp, tables)):
            if part is not None:
                yield part


def rows_of(
    table: DeviceTable, steps: Sequence[RowStep], chain: RowChain, xp: ModuleType, tables: Sequence[Tables]
) -> DeviceTable | None:
    """Compute one table; None if a filter leaves nothing. The last of the tables of words is the chain's."""
    if on_device(xp):
        try:
            return chain.run(table, xp, tables[-1])
        except (
            HeadwaterError
        ):  # steps that are taken one by one say of which row, or that none is kept for which
            pass
    for step, words in zip(steps, tables):
        table = step.alone(table, xp, words)
        if not table.rows and isinstance(step.link, Keep):
            return None
    return table


def fused(first: DeviceKernel, second: DeviceKernel) -> DeviceFilterProject | str | None:
    """Join a step, or several, with the one that reads from them.

    Args:
        first: any operator.
        second: the one that reads what it leaves.

    Returns:
        One operator for both; why there is none; None if they aren't filters and projections.
    """
    before = first.steps if isinstance(first, DeviceFilterProject) else (first,)
    steps = [*before, second]
    if not all(isinstance(step, RowStep) for step in steps):
        return None
    chained: list[RowStep] = [step for step in steps if isinstance(step, RowStep)]
    chain = chain_of(chained[0].ends[0], [step.link for step in chained], chained[-1].ends[1])
    return chain if isinstance(chain, str) else DeviceFilterProject(tuple(chained), chain)
