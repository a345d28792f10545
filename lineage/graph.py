"""Dependencies between a partition and the partitions it is made from (RDD paper, section 4).

Partitions are numbered within stages, and the graph holds edges between stages, with the range of
partitions each is for. Questions are asked and answered with a mask of partitions for each stage, so
a wide dependency costs M + R and never M * R.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np

from ..errors import PlanError


class Dependency(Enum):
    """How a partition of an operator depends on the partitions of one of its inputs."""

    #: partition i reads partition i of the input (or one partition of one input, for a union)
    NARROW = "narrow"
    #: every partition may read a piece of every partition of the input
    WIDE = "wide"
    #: every partition reads the whole input
    BROADCAST = "broadcast"


#: which partitions are meant: for each stage, a boolean array of shape (partitions,)
Masks = list[np.ndarray]

#: for a stage, what each of its partitions left for each reader of a wide dependency: numbers of shape
#: (partitions, readers), zero where there is nothing to read; or None, not known
Segments = Callable[[int], "np.ndarray | None"]


@dataclass(frozen=True)
class Edge:
    """The partitions ``start`` to ``stop`` of a stage read an earlier stage.

    With a narrow dependency, partition ``start + i`` reads partition i of the source, and the range is
    as long as the source. With a wide one, it reads the segment i of all its partitions.
    """

    source: int
    dependency: Dependency
    start: int
    stop: int


@dataclass(frozen=True)
class LineageGraph:
    """Which partitions are made from which, for all stages of a run.

    Attributes:
        partitions: how many each stage has.
        edges: for each stage, what it reads; sources come before their readers.

    Raises:
        PlanError: an edge points forward, or its range doesn't fit.

    Example:
        Three partitions are mapped one to one, and reduced to two.

        >>> graph = LineageGraph(
        ...     (3, 3, 2), ((), (Edge(0, Dependency.NARROW, 0, 3),), (Edge(1, Dependency.WIDE, 0, 2),))
        ... )
        >>> [np.flatnonzero(mask).tolist() for mask in graph.ancestors(graph.select(1, [2]))]
        [[2], [], []]
        >>> [np.flatnonzero(mask).tolist() for mask in graph.dependents(graph.select(0, [1]))]
        [[], [1], [0, 1]]

    Source:
        M. Zaharia and others, "Resilient Distributed Datasets" (2012), section 4.
    """

    partitions: tuple[int, ...]
    edges: tuple[tuple[Edge, ...], ...]

    def __post_init__(self) -> None:
        for stage, edges in enumerate(self.edges):
            for edge in edges:
                if not 0 <= edge.source < stage:
                    raise PlanError(f"stage {stage} reads stage {edge.source}, which isn't before it")
                if not 0 <= edge.start <= edge.stop <= self.partitions[stage]:
                    raise PlanError(f"stage {stage} has no partitions {edge.start} to {edge.stop}")
                if edge.dependency is Dependency.NARROW and (
                    edge.stop - edge.start != self.partitions[edge.source]
                ):
                    raise PlanError(f"stage {stage} reads stage {edge.source} narrowly, but not all of it")

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """For each stage, the ids of the stages that it reads, ascending."""
        return tuple(tuple(sorted({edge.source for edge in edges})) for edges in self.edges)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each stage, the ids of the stages that read it, ascending."""
        found: list[list[int]] = [[] for _ in self.partitions]
        for stage, sources in enumerate(self.sources):
            for source in sources:
                found[source].append(stage)
        return tuple(map(tuple, found))

    def none(self) -> Masks:
        """No partition of any stage."""
        return [np.zeros(count, dtype=bool) for count in self.partitions]

    def select(self, stage: int, partitions: Iterable[int] | slice = slice(None)) -> Masks:
        """Some partitions of one stage; all, unless told which."""
        masks = self.none()
        masks[stage][partitions if isinstance(partitions, slice) else list(partitions)] = True
        return masks

    def parents(self, chosen: Sequence[np.ndarray], segments: Segments | None = None) -> Masks:
        """What partitions read directly.

        Args:
            chosen: a mask for each stage.
            segments: what is known of pieces; those known to be empty aren't read.

        Returns:
            A mask for each stage.
        """
        found = self.none()
        for stage, mask in enumerate(chosen):
            self.add_parents(stage, mask, found, segments)
        return found

    def ancestors(self, chosen: Sequence[np.ndarray], segments: Segments | None = None) -> Masks:
        """All that partitions are made from, back to the sources; arguments as `parents`."""
        found = self.none()
        for stage in reversed(range(len(self.partitions))):
            self.add_parents(stage, chosen[stage] | found[stage], found, segments)
        return found

    def dependents(self, chosen: Sequence[np.ndarray], segments: Segments | None = None) -> Masks:
        """All that is made from partitions, up to the outputs; arguments as `parents`."""
        found = self.none()
        for stage, edges in enumerate(self.edges):
            for edge in edges:
                read = chosen[edge.source] | found[edge.source]
                found[stage][edge.start : edge.stop] |= _readers(edge, read, segments)
        return found

    def add_parents(
        self, stage: int, mask: np.ndarray, found: Masks, segments: Segments | None = None
    ) -> None:
        """Add to ``found`` what some partitions of one stage read directly; arguments as `parents`."""
        for edge in self.edges[stage]:
            wanted = mask[edge.start : edge.stop]
            if not wanted.any():
                continue
            sizes = _sizes(edge, segments)
            if edge.dependency is Dependency.NARROW:
                found[edge.source] |= wanted
            elif sizes is None:
                found[edge.source][:] = True
            else:
                found[edge.source] |= (sizes if wanted.all() else sizes[:, wanted]).any(axis=1)


def _readers(edge: Edge, read: np.ndarray, segments: Segments | None) -> np.ndarray | bool:
    """Which partitions of an edge's range read some of the source's."""
    if edge.dependency is Dependency.NARROW:
        return read
    sizes = _sizes(edge, segments) if read.any() else None
    return bool(read.any()) if sizes is None else sizes[read].any(axis=0)


def _sizes(edge: Edge, segments: Segments | None) -> np.ndarray | None:
    return segments(edge.source) if segments and edge.dependency is Dependency.WIDE else None
