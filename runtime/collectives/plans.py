"""Plan of a sum: which bytes are added, sent and received by one member, prepared once and used for every step.

A member's own parts become whole subtrees in its room. Small sums are then added up by every member for itself, in one
round. Large ones go by chunks: a chunk's agent on each node joins what the node has of it and sends it to the
owner, the owner finishes the tree, and the agents get the result into the memory of their nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .layout import Layout, chunk_span
from .ordered_sum import Scratch, ordered_sum
from .rooms import Rooms
from .shape import Shape
from .tree import Schedule, Span, schedule

#: sums whose partial sums have at most so many bytes in all go in one round
SMALL_BYTES = 256 << 10

#: schedule, operands, target, whether a single operand is the target already
Addition = tuple[Schedule, list[np.ndarray], np.ndarray, bool]


def is_small(layout: Layout, shape: Shape) -> bool:
    """Whether a sum is so small that every member had better add it up for itself."""
    return shape.nbytes * len(layout.all_pieces) <= SMALL_BYTES


class Plan:
    """What one member does in a sum, in one of its two slots.

    Args:
        rank: of the member.
        layout: of the group.
        rooms: of the node, large enough.
        shape: of the arrays.
        slot: 0 or 1.
        private: gives a buffer of this process by a name and a size in bytes.
        leaves: by number of a piece of a member that is alone on its node, arrays that are that piece already.
        result: arrays that get the result, if the member is alone on its node; otherwise a place in its room does.

    Attributes:
        own: (piece, its arrays) of this member that have to be added up or copied.
        result: the arrays of the node's result.
        chunks: this member's chunks of the result.
        direct: whether the result goes straight into arrays that were given.
        small: whether everyone adds up everything.
    """

    def __init__(
        self,
        rank: int,
        layout: Layout,
        rooms: Rooms,
        shape: Shape,
        slot: int,
        private: Callable[..., np.ndarray],
        leaves: Mapping[int, list[np.ndarray]] | None = None,
        result: list[np.ndarray] | None = None,
    ):
        self.rank, self.layout, self.shape = rank, layout, shape
        self._rooms, self._slot, self._private = rooms, slot, private
        self._leaves = leaves or {}
        self.node = layout.nodes[rank]
        self.others = tuple(node for node in layout.members if node != self.node)
        self.far = tuple(other for other in range(layout.size) if layout.nodes[other] != self.node)
        #: a process that is all there is adds up straight into the result
        self._whole = result if layout.size == 1 else None
        self.own = [
            (span, self._piece(rank, number))
            for number, span in enumerate(layout.pieces[rank])
            if number not in self._leaves
        ]
        self.result = result or self._room(*layout.result_place(self.node))
        self._slices = [
            [chunk_span(length, owner, layout.size) for length in shape.lengths]
            for owner in range(layout.size)
        ]
        self.direct = bool(result)
        self.chunks = self._cut(self.result, rank)
        self.small = is_small(layout, shape)
        own = self._bytes(self.chunks)
        self.results_out = {layout.agent(node, rank): own for node in self.others}
        self.results_in = {
            owner: self._bytes(self._cut(self.result, owner))
            for owner in self.far
            if layout.agent(self.node, owner) == rank
        }

    def prepare_small(self) -> None:
        """Prepare a sum that every member adds up for itself."""
        shape, layout = self.shape, self.layout
        own = [self._bytes(arrays) for _, arrays in self.own]
        self.outgoing = {rank: [part for piece in own for part in piece] for rank in self.far}
        self.ingoing: dict[int, list[np.ndarray]] = {}
        arrays = {}
        for span, rank, number in layout.all_pieces:
            if layout.nodes[rank] == self.node:
                arrays[span] = self._piece(rank, number)
            else:
                arrays[span] = shape.views(self._private(("small", rank, number), shape.stride))
                self.ingoing.setdefault(rank, []).extend(self._bytes(arrays[span]))
        spans = tuple(span for span, _, _ in layout.all_pieces)
        self.whole = [
            (schedule((0, layout.total), spans), [arrays[span][i] for span in spans])
            for i in range(len(shape.lengths))
        ]

    def prepare_large(self) -> None:
        """Prepare a sum by chunks."""
        self._prepare_merging()
        self._prepare_finishing()

    def _prepare_merging(self) -> None:
        layout = self.layout
        pieces = layout.node_pieces(self.node)
        self.merges: list[Addition] = []
        self.partials_out: dict[int, list[np.ndarray]] = {}
        for owner in self.far:
            if layout.agent(self.node, owner) != self.rank:
                continue
            parts = self.partials_out[owner] = []
            for merged in layout.merged(self.node):
                inside = [piece for piece in pieces if merged[0] <= piece[0][0] and piece[0][1] <= merged[1]]
                operands = [self._cut(self._piece(rank, number), owner) for _, rank, number in inside]
                plan = schedule(merged, tuple(span for span, _, _ in inside))
                self.merges += self._additions(plan, operands, operands[0], True)
                parts += self._bytes(operands[0])

    def _prepare_finishing(self) -> None:
        layout, rank = self.layout, self.rank
        operands: dict[Span, list[np.ndarray]] = {
            span: self._cut(self._piece(other, number), rank)
            for span, other, number in layout.node_pieces(self.node)
        }
        sizes = [max(1, len(chunk)) for chunk in self.chunks]
        mine = Shape(sizes, [dtype.str for dtype in self.shape.dtypes])
        self.partials_in: dict[int, list[np.ndarray]] = {}
        for node in self.others:
            agent = layout.agent(node, rank)
            for number, span in enumerate(layout.merged(node)):
                room = mine.views(self._private(("large", node, number), mine.stride))
                operands[span] = [view[: len(chunk)] for view, chunk in zip(room, self.chunks)]
                self.partials_in.setdefault(agent, []).extend(self._bytes(operands[span]))
        spans = tuple(sorted(operands))
        plan = schedule((0, layout.total), spans)
        self.finish = self._additions(plan, [operands[span] for span in spans], self.chunks, not self.others)

    def fill(self, parts: dict[int, Sequence[np.ndarray]], scratch: Scratch) -> None:
        """Add up this member's parts to its pieces."""
        for (start, stop), arrays in self.own:
            plan = schedule((start, stop), tuple((index, index + 1) for index in range(start, stop)))
            for number, out in enumerate(arrays):
                ordered_sum(plan, [parts[index][number] for index in range(start, stop)], out, scratch)

    def _additions(
        self, plan: Schedule, operands: list[list[np.ndarray]], out: list[np.ndarray], in_place: bool
    ) -> list[Addition]:
        return [
            (plan, [operand[number] for operand in operands], target, in_place)
            for number, target in enumerate(out)
            if len(target) and (plan.steps or not in_place)
        ]

    def _piece(self, rank: int, number: int) -> list[np.ndarray]:
        if self._whole is not None:
            return self._whole
        if rank == self.rank and number in self._leaves:
            return self._leaves[number]
        return self._room(rank, number)

    def _room(self, rank: int, number: int) -> list[np.ndarray]:
        return self.shape.views(self._rooms.piece(rank, number, self._slot, self.shape.stride))

    def _cut(self, arrays: list[np.ndarray], owner: int) -> list[np.ndarray]:
        return [array[part] for array, part in zip(arrays, self._slices[owner])]

    @staticmethod
    def _bytes(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [array.view(np.uint8) for array in arrays if len(array)]
