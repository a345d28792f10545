"""A tiny source over tables in memory, short ways to build nodes, and an executor of physical plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

import pyarrow as pa
import pytest

from headwater.ops.expressions import col
from headwater.ops.kernel import Broadcast, Context
from headwater.ops.node import Node, plan_text
from headwater.ops.partitioner import KeySampler, range_boundaries
from headwater.ops.project import Project
from headwater.ops.scan import Scan
from headwater.ops.sink import Sink
from headwater.ops.source import Source, Split, read_exactly
from headwater.planner.explain import physical_lines
from headwater.planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    PhysicalPlan,
    RuleEvent,
    ScanLeaf,
    Stage,
    Step,
    UnionStep,
)


@dataclass(frozen=True)
class FakeSource(Source):
    """Tables in memory, one a split; sizes may be declared instead of measured."""

    name: str
    tables: tuple[pa.Table, ...]
    kind: str = "parquet"
    split_bytes: int | None = None
    split_rows: int | None = None
    counted: bool = True

    @property
    def schema(self) -> pa.Schema:
        return self.tables[0].schema

    def identity(self) -> Any:
        return (self.name, len(self.tables))

    def splits(self) -> Sequence[Split]:
        return tuple(
            Split(
                i,
                (self.split_rows if self.split_rows is not None else t.num_rows) if self.counted else None,
                self.split_bytes if self.split_bytes is not None else t.nbytes,
            )
            for i, t in enumerate(self.tables)
        )

    def prune(self, splits: Sequence[Split], predicate) -> Sequence[Split]:
        if self.split_rows is not None:
            return splits
        tables = [self.tables[split.index] for split in splits]
        return [split for split, t in zip(splits, tables) if t.filter(predicate.evaluate(t)).num_rows]

    def read(self, split: Split, columns, predicate=None, limit=None) -> Iterator[pa.Table]:
        yield self.tables[split.index].select(list(columns))

    def describe(self) -> str:
        return self.name


class FakeSink(Sink):
    kind = "fake"

    def __init__(self, single: bool = False):
        self.single = single

    def check(self, schema: pa.Schema) -> None:
        pass

    @property
    def single_file(self) -> bool:
        return self.single

    def identity(self) -> Any:
        return ("fake", self.single)


def _scan(name: str, columns: Mapping[str, str] | pa.Table, partitions: int = 2, **options: Any) -> Scan:
    """Scan a table cut into partitions, or an empty one of the named types."""
    if not isinstance(columns, pa.Table):
        columns = pa.schema([(c, pa.type_for_alias(t)) for c, t in columns.items()]).empty_table()
    size = -(-columns.num_rows // partitions)
    cuts = [columns.slice(i * size, size) for i in range(partitions)]
    return Scan(FakeSource(name, tuple(cuts), **options))


def _with(node: Node, **exprs: Any) -> Project:
    """Add or replace columns."""
    kept = [(name, exprs.pop(name, col(name))) for name in node.schema.names]
    return Project(node, (*kept, *exprs.items()))


def _select(node: Node, *names: str) -> Project:
    return Project(node, tuple((name, col(name)) for name in names))


@pytest.fixture
def scan():
    return _scan


@pytest.fixture
def with_columns():
    return _with


@pytest.fixture
def select():
    return _select


@pytest.fixture
def sink():
    return FakeSink


@pytest.fixture
def rides() -> Scan:
    """1 GiB of 10 million rows in 16 partitions; sizes are declared, there is no data."""
    columns = {"id": "int64", "zone": "int32", "fare": "double", "tip": "double", "note": "string"}
    return _scan("rides", columns, 16, split_bytes=64 << 20, split_rows=625_000)


@pytest.fixture
def zones() -> Scan:
    """A small table of one partition."""
    columns = {"zone": "int32", "name": "string", "people": "int64"}
    return _scan("zones", columns, 1, split_bytes=8_000, split_rows=260)


@pytest.fixture
def assert_rule():
    """Apply one rule to one output and compare the plan texts; return what the rule reported."""

    def check(rule, node: Node, after: str) -> list[RuleEvent]:
        roots, events = rule({"out": node})
        assert roots["out"].schema == node.schema
        assert plan_text(roots["out"]) == dedent(after).strip()
        return list(events)

    return check


@pytest.fixture
def assert_stages():
    """Compare the text of a physical plan."""

    def check(plan: PhysicalPlan, text: str) -> None:
        assert "\n".join(physical_lines(plan)) == dedent(text).strip()

    return check


@pytest.fixture
def execute():
    """Run a physical plan in this process, one partition after another."""
    return _Executor


class _Executor:
    """The smallest thing that runs a plan: blocks are lists of tables by segment."""

    def __init__(self, plan: PhysicalPlan):
        self.plan = plan
        self.blocks: dict[int, list[list[pa.Table]]] = {}
        self.samples: dict[int, list] = {}
        for stage in plan.stages:
            self.blocks[stage.id] = [self._partition(stage, i) for i in range(stage.partitions)]
            if stage.sample:
                self.samples[stage.id] = [self._sample(stage, i) for i in range(stage.partitions)]

    def output(self, name: str) -> pa.Table:
        return self._whole(self.plan.outputs[name])

    def _whole(self, id: int) -> pa.Table:
        tables = [segment for block in self.blocks[id] for segment in block]
        return pa.concat_tables([self.plan.stages[id].schema.empty_table(), *tables])

    def _partition(self, stage: Stage, index: int) -> list[pa.Table]:
        table = pa.concat_tables([stage.schema.empty_table(), *self._run(stage, stage.operator, index)])
        assert table.schema == stage.schema
        if stage.exchange is None:
            return [table]
        partitioner = stage.exchange.partitioner
        if stage.exchange.boundaries_from is not None:
            samples = [s for s in self.samples[stage.exchange.boundaries_from] if s is not None]
            boundaries = range_boundaries(samples, partitioner.keys, partitioner.count)
            partitioner = type(partitioner)(partitioner.keys, partitioner.count, boundaries)
        segments = partitioner.assign(table, index, 0)
        return [table.filter(pa.array(segments == i)) for i in range(partitioner.count)]

    def _sample(self, stage: Stage, index: int):
        sampler = KeySampler(stage.sample, (*map(str, stage.sample), index))
        sampler.update(self.blocks[stage.id][index][0])
        return sampler.result()

    def _run(self, stage: Stage, operator, index: int):
        if isinstance(operator, UnionStep):
            return self._run(stage, *operator.locate(index))
        if isinstance(operator, Step):
            inputs = [
                Broadcast(lambda c=child: iter([self._whole(c.stage)]), child.schema, {})
                if isinstance(child, BroadcastLeaf)
                else iter(self._run(stage, child, index))
                for child in operator.inputs
            ]
            return operator.kernel.run(inputs, Context(partition=index))
        if isinstance(operator, ScanLeaf):
            split = stage.splits[operator.slot][index]
            return read_exactly(operator.source, split, operator.columns, operator.predicate, operator.limit)
        if isinstance(operator, BlockLeaf):
            return iter(self.blocks[operator.stage][index])
        return iter([block[index] for block in self.blocks[operator.stage]])
