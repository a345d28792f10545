"""Who carries what, who sits where, and who speaks for a node: all that follows from a group's constellation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ...errors import ParameterError
from .tree import Span, coalesce, whole_subtrees

#: edges of chunks lie at multiples of this many elements, so at whole pages and cache lines
CHUNK_ELEMENTS = 4096


def chunk_span(length: int, rank: int, size: int) -> slice:
    """Return the part of a vector that a member owns; a short one belongs to the last member as a whole.

    Args:
        length: of the vector, in elements.
        rank: of the member.
        size: of the group.

    Example:
        >>> chunk_span(10_000, 1, 2)
        slice(4096, 10000, None)
    """
    blocks = -(-length // CHUNK_ELEMENTS)
    start, stop = (min(length, blocks * number // size * CHUNK_ELEMENTS) for number in (rank, rank + 1))
    return slice(start, stop)


class Layout:
    """The constellation of a group, the same on every member.

    Args:
        ranges: of logical indices, by rank; together ``0 … total - 1``, each once. None is empty.
        nodes: the node of each rank.

    Raises:
        ParameterError: the ranges don't cover ``0 … total - 1`` exactly once.
    """

    def __init__(self, ranges: Sequence[Span], nodes: Sequence[str]):
        self.ranges = tuple((int(start), int(stop)) for start, stop in ranges)
        self.nodes = tuple(nodes)
        if len(self.nodes) != len(self.ranges):
            raise ParameterError(f"a layout of {len(self.ranges)} ranges for {len(self.nodes)} members")
        self.size = len(self.ranges)
        self.total = sum(stop - start for start, stop in self.ranges)
        if any(start >= stop for start, stop in self.ranges) or coalesce(list(self.ranges)) != [
            (0, self.total)
        ]:
            raise ParameterError(
                f"layout={self.ranges}: the ranges of all members must cover 0 … n - 1, each index once and "
                "at least one a member, as ((0, 4), (4, 8)) do"
            )
        self.members: dict[str, tuple[int, ...]] = {}
        for rank, node in enumerate(self.nodes):
            self.members[node] = (*self.members.get(node, ()), rank)

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """The other ranks on a rank's node."""
        return tuple(other for other in self.members[self.nodes[rank]] if other != rank)

    def agent(self, node: str, owner: int) -> int:
        """The rank that sends and receives a chunk for its node; the owner itself on the owner's node."""
        there = self.members[node]
        return owner if owner in there else there[owner % len(there)]

    @cached_property
    def pieces(self) -> tuple[tuple[Span, ...], ...]:
        """The whole subtrees of each rank."""
        return tuple(whole_subtrees(self.total, start, stop) for start, stop in self.ranges)

    @cached_property
    def all_pieces(self) -> tuple[tuple[Span, int, int], ...]:
        """Every piece with its rank and its number there, in order of the indices."""
        return tuple(
            sorted((s, rank, i) for rank, spans in enumerate(self.pieces) for i, s in enumerate(spans))
        )

    def node_pieces(self, node: str) -> tuple[tuple[Span, int, int], ...]:
        """The pieces of a node's members, in order of the indices."""
        return tuple(piece for piece in self.all_pieces if self.nodes[piece[1]] == node)

    def merged(self, node: str) -> tuple[Span, ...]:
        """The whole subtrees of all that a node's members carry together."""
        ranges = coalesce([self.ranges[rank] for rank in self.members[node]])
        return tuple(span for start, stop in ranges for span in whole_subtrees(self.total, start, stop))

    def result_place(self, node: str) -> tuple[int, int]:
        """The (rank, number of a piece) of a node whose room becomes the result, once it has been added up."""
        return self.node_pieces(node)[0][1:]
