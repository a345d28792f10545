"""What each partition of a stage reads: splits, blocks or segments of blocks, by ranges of partitions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..lineage.graph import Dependency, Edge, LineageGraph
from ..ops.map_batches import MapBatchesKernel
from ..planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    Exchange,
    Leaf,
    Operator,
    PhysicalPlan,
    ScanLeaf,
    ShuffleLeaf,
    Step,
    UnionStep,
    all_kernels,
)

_DEPENDENCIES: dict[type[Leaf], Dependency] = {
    BlockLeaf: Dependency.NARROW,
    ShuffleLeaf: Dependency.WIDE,
    BroadcastLeaf: Dependency.BROADCAST,
}


@dataclass(frozen=True)
class LeafRange:
    """The partitions ``start`` to ``stop`` of a stage read this leaf; it counts them from 0."""

    leaf: Leaf
    start: int
    stop: int

    def holds(self, partition: int) -> bool:
        """Whether a partition of the stage reads the leaf."""
        return self.start <= partition < self.stop


def leaf_ranges(operator: Operator, count: int, start: int = 0) -> Iterator[LeafRange]:
    """Yield every leaf of an operator tree with the range of partitions that read it.

    The same as calling `planner.plan.leaves_of` for each partition, in time independent of their number.
    """
    if isinstance(operator, Step):
        for child in operator.inputs:
            yield from leaf_ranges(child, count, start)
    elif isinstance(operator, UnionStep):
        for branch, branch_count in operator.branches:
            yield from leaf_ranges(branch, branch_count, start)
            start += branch_count
    else:
        yield LeafRange(operator, start, start + count)


class LeavesByPartition:
    """Which leaves each partition of a stage reads, found without looking at all: a union may have thousands.

    Example:
        >>> leaves = LeavesByPartition([LeafRange("a", 0, 2), LeafRange("b", 0, 3), LeafRange("c", 3, 4)])
        >>> [[reads.leaf for reads in leaves.of(partition)] for partition in range(4)]
        [['a', 'b'], ['a', 'b'], ['b'], ['c']]
    """

    def __init__(self, ranges: Sequence[LeafRange]):
        begin: dict[int, list[LeafRange]] = {}
        for reads in ranges:
            begin.setdefault(reads.start, []).append(reads)
        self._starts = sorted({0, *begin, *(reads.stop for reads in ranges)})
        self._leaves: list[tuple[LeafRange, ...]] = []
        active: list[LeafRange] = []
        for start in self._starts:
            active = [reads for reads in active if reads.stop > start] + begin.get(start, [])
            self._leaves.append(tuple(active))

    def of(self, partition: int) -> tuple[LeafRange, ...]:
        """The leaves of one partition, with their ranges."""
        return self._leaves[bisect_right(self._starts, partition) - 1]


def lineage_of(plan: PhysicalPlan) -> LineageGraph:
    """Build the lineage graph of a plan: one edge for each leaf that reads an earlier stage."""
    edges = (
        tuple(
            Edge(reads.leaf.stage, _DEPENDENCIES[type(reads.leaf)], reads.start, reads.stop)
            for reads in leaf_ranges(stage.operator, stage.partitions)
            if not isinstance(reads.leaf, ScanLeaf)
        )
        for stage in plan.stages
    )
    return LineageGraph(tuple(stage.partitions for stage in plan.stages), tuple(edges))


def with_samples(plan: PhysicalPlan, exchanges: Sequence[Exchange | None]) -> LineageGraph:
    """Build the lineage graph with an edge more for each range exchange whose boundaries aren't known.

    Such a stage can't run before all samples are there, so it depends on the stage that leaves them.

    Args:
        plan: what runs.
        exchanges: of each stage, as far as it is resolved.
    """
    graph = lineage_of(plan)
    edges = list(graph.edges)
    for stage, exchange in zip(plan.stages, exchanges):
        source = exchange.boundaries_from if exchange is not None else None
        if source is not None and getattr(exchange.partitioner, "boundaries", None) is None:  # type: ignore[union-attr]
            sampled = Edge(source, Dependency.BROADCAST, 0, stage.partitions)
            edges[stage.id] = (*edges[stage.id], sampled)
    return LineageGraph(graph.partitions, tuple(edges))


def indeterminate_stages(plan: PhysicalPlan) -> frozenset[int]:
    """Find the stages whose results may differ when computed again, as an operator was declared so."""
    found: set[int] = set()
    for stage in plan.stages:
        kernels = (k for k in all_kernels(stage.operator) if isinstance(k, MapBatchesKernel))
        if not found.isdisjoint(stage.parents) or not all(k.deterministic for k in kernels):
            found.add(stage.id)
    return frozenset(found)
