"""Sharded state: each member keeps the optimizer's state of its part of the parameters, and a shadow of another part.

A step is a reduce-scatter of the gradient, an update of the own part, and an all-gather of the parameters. Before
the all-gather, each member's new part of the optimizer's state goes to the next rank, its buddy. A member finishes the
all-gather only after all have their neighbours' new shadows, and until then nothing old is thrown away. So the newest
step that a survivor has finished can be put together from the survivors, as long as no two neighbours died.

Source: ZeRO stage 1 (Rajbhandari et al. 2020); in-memory copies on a peer as in Gemini (Wang et al. 2023).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ops.backend import array_namespace, to_host
from ...ops.device.crossing import staged
from ...ops.training.minibatch import Minibatch, Piece
from ...ops.training.program import State
from ..collectives.nccl import NcclGroup
from .transport import AnyGroup, for_group

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Held:
    """A part of the optimizer's state, as it is after a step.

    Attributes:
        step: that it includes.
        start, stop: which elements of the parameters it belongs to.
        arrays: of the optimizer's state, each of ``stop - start`` elements: on the device where the gang exchanges
            between devices, else on the host.
    """

    step: int
    start: int
    stop: int
    arrays: Arrays

    def part(self, start: int, stop: int) -> Held | None:
        """The part of it that lies within a range; None if none does."""
        low, high = max(start, self.start), min(stop, self.stop)
        if low >= high:
            return None
        cut = {name: array[low - self.start : high - self.start] for name, array in self.arrays.items()}
        return Held(self.step, low, high, cut)

    def on_host(self) -> Held:
        """The same, with arrays that can travel."""
        return replace(self, arrays={name: to_host(array) for name, array in self.arrays.items()})


class ShardedState:
    """The parts of the optimizer's state that one member holds.

    Args:
        program: whose optimizer is elementwise.
    """

    def __init__(self, program: Minibatch):
        self._program = program
        #: own part and shadow, of the last step and, while a step isn't finished everywhere, of the next one
        self._held: list[Held] = []

    def share(self, state: State, step: int, group: AnyGroup) -> bool:
        """Give each member the parts of the optimizer's state that it needs now, at the start of a generation.

        Args:
            state: at ``step``; its optimizer's state becomes this member's part.
            step: that the gang goes on from.
            group: the generation's.

        Returns:
            Whether all parts are there; if not, too many members died.
        """
        size = len(state["params"])
        ranges = [group.chunk(size, rank) for rank in range(group.size)]
        own, before = ranges[group.rank], ranges[group.rank - 1]
        if step == 0:
            first = self._program.optimizer.init({"": state["params"]})  # as every member knows it
            held = [Held(0, 0, size, {name: to_host(array) for name, array in first.items()})]
        else:
            held = [part for part in self._held if part.step == step]
        payloads = []
        for rank in range(group.size):
            wanted = [ranges[rank], ranges[rank - 1]]
            cuts = (part.part(r.start, r.stop) for r in wanted for part in (held if step else ()))
            payloads.append(pickle.dumps([cut.on_host() for cut in cuts if cut is not None], 5))
        found = [part for got in group.all_to_all(payloads) for part in pickle.loads(got)] if step else held
        like = {name: to_host(array).dtype for name, array in state["optimizer"].items()}
        mine, shadow = (_put_together(found, step, where, like) for where in (own, before))
        complete = mine is not None and shadow is not None
        if not all(note == b"" for note in group.barrier(b"" if complete else b"L")):
            self._held = []
            return False
        assert mine is not None
        assert shadow is not None
        self._held = [mine, shadow]
        state["optimizer"] = _to_device(mine.arrays)
        return True

    def step(
        self,
        state: State,
        step: int,
        group: AnyGroup,
        parts: Mapping[int, Sequence[np.ndarray]],
        names: Sequence[str],
        note: bytes,
    ) -> tuple[State, list[bytes]]:
        """Make one step together.

        Args:
            state: at ``step``, with this member's part of the optimizer's state. It stays valid if the group breaks.
            step: that is finished.
            group: the generation's.
            parts: of each own shard, its statistics, flat.
            names: of the statistics.
            note: for all members.

        Returns:
            The next state, and the notes of all members.

        Raises:
            GroupBrokenError: a member is gone.
        """
        program, size = self._program, len(state["params"])
        large = [number for number, name in enumerate(names) if name in program.sliced]
        small = [number for number in range(len(names)) if number not in large]
        chunks: list[np.ndarray] = []
        if large:
            chunks = group.reduce_scatter({i: [arrays[n] for n in large] for i, arrays in parts.items()})
        sums, notes = group.all_reduce({i: [arrays[n] for n in small] for i, arrays in parts.items()}, note)
        total = dict(zip((names[n] for n in small), _on_device(sums)))
        if not large or not program.makes_update(state, total):
            return self._advanced(program.finish(state, total, None), step), notes
        where = group.chunk(size)
        pieces = dict(zip((names[n] for n in large), _on_device(chunks)))
        piece = self._update(state, {**total, **pieces}, where, size)
        mine = Held(step + 1, where.start, where.stop, dict(piece.optimizer))
        squares, shadow = self._exchange(
            group, mine if group.on_device else mine.on_host(), piece.squares, size
        )
        self._held = [part for part in self._held if part.step == step] + [mine, shadow]
        (params,) = group.all_gather([for_group(group, piece.params)], [size])
        whole = Piece(_on_device([params])[0], piece.optimizer, squares)
        new = program.finish(state, total, whole)
        self._held = [mine, shadow]
        return new, notes

    def _update(self, state: State, sums: Mapping[str, Any], where: slice, size: int) -> Piece:
        """Make the own part's update, and leave the state as it is."""
        if where.start == where.stop:
            return Piece(state["params"][:0], state["optimizer"], np.zeros(0))
        if (where.start, where.stop) == (0, size):  # a whole would be updated in place
            slots = {name: array.copy() for name, array in state["optimizer"].items()}
            state = {**state, "params": state["params"].copy(), "optimizer": slots}
        return self._program.update_slice(state, sums, where)

    def gather(self, state: State, group: AnyGroup) -> None:
        """Give every member the whole of the optimizer's state, once training is finished."""
        size, names = len(state["params"]), list(state["optimizer"])
        chunks = [for_group(group, state["optimizer"][name]) for name in names]
        whole = group.all_gather(chunks, [size] * len(names))
        state["optimizer"] = dict(zip(names, _on_device(whole)))

    def _exchange(
        self, group: AnyGroup, mine: Held, squares: np.ndarray, size: int
    ) -> tuple[np.ndarray, Held]:
        """Send the own part to the buddy, and to all what the norm of the gradient is made from."""
        buddy, given = (group.rank + 1) % group.size, None if isinstance(group, NcclGroup) else mine
        squares = to_host(squares)
        payloads = [
            pickle.dumps((squares, given if rank == buddy else None), 5) for rank in range(group.size)
        ]
        found = [pickle.loads(got) for got in group.all_to_all(payloads)]
        shadow = found[group.rank - 1][1]
        if isinstance(group, NcclGroup):
            before = group.chunk(size, (group.rank - 1) % group.size)
            arrays = [for_group(group, array) for array in mine.arrays.values()]
            there = group.shift(arrays, [before.stop - before.start] * len(arrays))
            shadow = Held(mine.step, before.start, before.stop, dict(zip(mine.arrays, there)))
        return np.concatenate([part for part, _ in found]), shadow

    def _advanced(self, state: State, step: int) -> State:
        """The parts are those of the next step too, which changes nothing of them."""
        self._held = [
            Held(step + 1, part.start, part.stop, part.arrays) for part in self._held if part.step == step
        ] + [part for part in self._held if part.step == step]
        return state


def _put_together(
    found: Sequence[Held], step: int, where: slice, dtypes: Mapping[str, np.dtype]
) -> Held | None:
    """Make one part of several that may overlap; None if an element is missing."""
    arrays = {name: np.empty(where.stop - where.start, dtype) for name, dtype in dtypes.items()}
    reached = where.start
    for part in sorted(found, key=lambda part: part.start):
        cut = part.part(reached, where.stop)
        if cut is None:
            continue
        if cut.start > reached:
            return None
        for name, array in cut.arrays.items():
            arrays[name][cut.start - where.start : cut.stop - where.start] = array
        reached = cut.stop
    return Held(step, where.start, where.stop, arrays) if reached >= where.stop else None


def _to_device(arrays: Arrays) -> dict[str, Any]:
    return dict(zip(arrays, _on_device(list(arrays.values()))))


def _on_device(arrays: Sequence[np.ndarray]) -> Sequence[Any]:
    xp = array_namespace()
    return arrays if xp is np else [staged(xp, array) for array in arrays]
