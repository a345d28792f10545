"""What each partition of a stage reads: splits, blocks or segments of blocks, by ranges of partitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..planner.plan import Leaf, Operator, Step, UnionStep


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
