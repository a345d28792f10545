"""Recovery planning: which lost results must be made again, and no others. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .graph import LineageGraph, Masks, Segments


@dataclass(frozen=True)
class Recovery:
    """What to run again.

    Attributes:
        rerun: for each stage, a mask of the partitions to make again.
        present: for each stage, a mask of the results that are there already.
    """

    rerun: Masks
    present: Sequence[np.ndarray]

    def steps(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield stages with the partitions to make again, each stage after those it reads."""
        for stage, mask in enumerate(self.rerun):
            if mask.any():
                yield stage, np.flatnonzero(mask)

    def reads(self, graph: LineageGraph, segments: Segments | None = None) -> Masks:
        """Which of the results that are there already will be read by what runs again."""
        return [read & there for read, there in zip(graph.parents(self.rerun, segments), self.present)]


def plan_recovery(
    graph: LineageGraph,
    present: Sequence[np.ndarray],
    needed: Sequence[np.ndarray],
    unfinished: Sequence[np.ndarray] | None = None,
    segments: Segments | None = None,
) -> Recovery:
    """Find the smallest set of partitions that must be made again.

    A result must be there if it is needed, or read by a partition that still has to run or has to be
    made again. Every set that does must hold these, and these are enough, so the smallest is unique.

    Args:
        graph: what is made from what.
        present: for each stage, a mask of the results that can be read, or are being made right now.
        needed: for each stage, a mask of the results that will be read from outside: outputs not yet taken.
        unfinished: for each stage, a mask of partitions that will run in any case, and read their inputs.
        segments: what is known of pieces; those known to be empty aren't read. Rows of unfinished
            partitions mean nothing.

    Returns:
        What to run again; nothing if no result that matters is lost.

    Example:
        Of three maps, the second is lost; the reducers have not run.

        >>> from headwater.lineage.graph import Dependency, Edge
        >>> graph = LineageGraph((3, 2), ((), (Edge(0, Dependency.WIDE, 0, 2),)))
        >>> present = [np.array([True, False, True]), np.array([False, False])]
        >>> plan = plan_recovery(graph, present, graph.select(1), unfinished=graph.select(1))
        >>> [(stage, partitions.tolist()) for stage, partitions in plan.steps()]
        [(0, [1])]

    Source:
        M. Zaharia and others, "Resilient Distributed Datasets" (2012), section 5.1.
    """
    coming = unfinished or graph.none()
    required = [mask.copy() for mask in needed]
    rerun = graph.none()
    for stage in reversed(range(len(graph.partitions))):
        rerun[stage] = required[stage] & ~(present[stage] | coming[stage])
        graph.add_parents(stage, rerun[stage] | coming[stage], required, segments)
    return Recovery(rerun, present)
