"""The physical plan: stages of fused operators, joined by exchanges.

A stage computes each of its partitions with one operator tree. The tree's leaves read source splits
or blocks that earlier stages left. The plan depends on the data and the pipeline, never on workers.

Every stage has at least one partition: a scan of which no split is left reads one empty split of
`scans.EmptySource`. Slots are unique in the whole plan. The stage of an output has no exchange.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import pyarrow as pa

from ..ops.expressions.expr import Expr
from ..ops.kernel import Kernel
from ..ops.partitioner import Partitioner
from ..ops.sink import Sink
from ..ops.sort import SortKey
from ..ops.source import Source, Split


@dataclass(frozen=True)
class ScanLeaf:
    """Reads one split of a source, filtered exactly; splits are in ``Stage.splits[slot]``."""

    slot: int
    source: Source
    columns: tuple[str, ...]
    predicate: Expr | None
    limit: int | None
    schema: pa.Schema


@dataclass(frozen=True)
class BlockLeaf:
    """Reads partition i of an earlier stage: a narrow dependency on a block."""

    slot: int
    stage: int
    schema: pa.Schema


@dataclass(frozen=True)
class ShuffleLeaf:
    """Reads segment i of every block of an earlier stage, in map order: a wide dependency."""

    slot: int
    stage: int
    schema: pa.Schema


@dataclass(frozen=True)
class BroadcastLeaf:
    """Reads all blocks of an earlier stage, in order, for every partition."""

    slot: int
    stage: int
    schema: pa.Schema


Leaf = ScanLeaf | BlockLeaf | ShuffleLeaf | BroadcastLeaf


@dataclass(frozen=True)
class Estimate:
    """Expected size of an output, in rows and bytes in memory; exact where metadata tells."""

    rows: float
    bytes: float
    exact: bool = False


@dataclass(frozen=True)
class Step:
    """A kernel over the streams of its inputs; ``estimate`` is of all partitions together, None if nobody asked."""

    kernel: Kernel
    inputs: tuple[Operator, ...]
    schema: pa.Schema
    estimate: Estimate | None = None


@dataclass(frozen=True)
class UnionStep:
    """Partition i is partition i - offset of the branch that it falls into.

    Attributes:
        branches: (operator, number of partitions) in order.
    """

    branches: tuple[tuple[Operator, int], ...]
    schema: pa.Schema

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """For each branch, the number of partitions up to its end."""
        return tuple(accumulate(count for _, count in self.branches))

    def locate(self, partition: int) -> tuple[Operator, int]:
        """Return the branch that holds a partition, and the partition's index within it."""
        position = bisect_right(self.ends, partition)
        if position == len(self.branches):
            raise IndexError(partition)
        branch, count = self.branches[position]
        return branch, partition - self.ends[position] + count


Operator = Step | UnionStep | Leaf


def leaves_of(operator: Operator, partition: int) -> Iterator[tuple[Leaf, int]]:
    """Yield the leaves that a partition reads, each with the partition's index as that leaf counts it."""
    if isinstance(operator, Step):
        for child in operator.inputs:
            yield from leaves_of(child, partition)
    elif isinstance(operator, UnionStep):
        branch, local = operator.locate(partition)
        yield from leaves_of(branch, local)
    else:
        yield operator, partition


def all_leaves(operator: Operator) -> Iterator[Leaf]:
    """Yield every leaf of an operator tree, left to right."""
    if isinstance(operator, Step):
        for child in operator.inputs:
            yield from all_leaves(child)
    elif isinstance(operator, UnionStep):
        for branch, _ in operator.branches:
            yield from all_leaves(branch)
    else:
        yield operator


def all_kernels(operator: Operator) -> Iterator[Kernel]:
    """Yield every kernel of an operator tree, inputs first, left to right."""
    if isinstance(operator, Step):
        for child in operator.inputs:
            yield from all_kernels(child)
        yield operator.kernel
    elif isinstance(operator, UnionStep):
        for branch, _ in operator.branches:
            yield from all_kernels(branch)


@dataclass(frozen=True)
class Exchange:
    """How a stage's output is cut into segments for the partitions of the next.

    Attributes:
        partitioner: gives each row its segment. A range partitioner comes without boundaries.
        boundaries_from: the stage whose key samples give a range partitioner its boundaries.
    """

    partitioner: Partitioner
    boundaries_from: int | None = None

    @property
    def count(self) -> int:
        """Number of segments in each block."""
        return self.partitioner.count

    def resolved(self, partitioner: Partitioner) -> Exchange:
        """Return the exchange with its boundaries filled in."""
        return replace(self, partitioner=partitioner)


@dataclass(frozen=True)
class Transfer:
    """Expected bytes that cross between host and device, of all partitions together.

    Attributes:
        to_device: from the host.
        to_host: to the host.
        found: don't cross, as they are read where a stage before has left them on a device.
    """

    to_device: float = 0.0
    to_host: float = 0.0
    found: float = 0.0

    def __add__(self, other: Transfer) -> Transfer:
        return Transfer(
            self.to_device + other.to_device, self.to_host + other.to_host, self.found + other.found
        )

    @property
    def on_device(self) -> float:
        """All that is read on a device."""
        return self.to_device + self.found


@dataclass(frozen=True)
class Storage:
    """How a persisted stage is kept between runs.

    Attributes:
        level: "disk", or "memory" to hold its pages there as far as the system allows.
        replicas: on how many nodes each block lies, if there are so many.
    """

    level: str = "disk"
    replicas: int = 1


@dataclass(frozen=True)
class Stage:
    """Operators fused between exchanges, over a fixed number of partitions.

    Attributes:
        id: position in the plan; inputs have smaller ids.
        key: lineage key of what the stage leaves (its node's key and its exchange).
        label: operators in words, as "scan rides > filter > partial aggregate".
        operator: the tree that computes a partition.
        partitions: how many; fixed by data and plan.
        schema: of the rows it leaves, or gives to its sink.
        splits: for each scan leaf's slot, the split of each of the leaf's partitions.
        exchange: how blocks are cut into segments; None leaves one segment, the partition.
        sink: where partitions are staged instead of left as blocks.
        sample: sort keys to sample from the output, for a range exchange further on.
        estimate: expected size of all partitions together.
        storage: how its blocks are kept between runs, if a user asked for it.
        device: "gpu" if its tasks need a worker with a GPU, else "cpu".
        transfer: what crosses between host and device, and what needn't.
    """

    id: int
    key: str
    label: str
    operator: Operator
    partitions: int
    schema: pa.Schema
    splits: Mapping[int, tuple[Split, ...]] = field(default_factory=dict)
    exchange: Exchange | None = None
    sink: Sink | None = None
    sample: tuple[SortKey, ...] = ()
    estimate: Estimate = Estimate(0, 0)
    storage: Storage | None = None
    device: str = "cpu"
    transfer: Transfer = Transfer()

    @property
    def parents(self) -> tuple[int, ...]:
        """Ids of the stages this one reads, and of the one its boundaries come from, ascending."""
        ids = {leaf.stage for leaf in all_leaves(self.operator) if not isinstance(leaf, ScanLeaf)}
        if self.exchange is not None and self.exchange.boundaries_from is not None:
            ids.add(self.exchange.boundaries_from)
        return tuple(sorted(ids))


@dataclass(frozen=True)
class RuleEvent:
    """A rule that rewrote the plan, or refused to, and why."""

    rule: str
    fired: bool
    detail: str


@dataclass(frozen=True)
class PhysicalPlan:
    """Stages in an order in which each comes after those it reads, and which of them are outputs.

    Attributes:
        stages: by id.
        outputs: output name to stage id.
        trace: what the rules did.
    """

    stages: tuple[Stage, ...]
    outputs: Mapping[str, int]
    trace: tuple[RuleEvent, ...] = ()
