"""Carry out the additions of a schedule on arrays, a block at a time so that intermediate sums stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .tree import Schedule

#: bytes of one operand of a block
_BLOCK_BYTES = 128 << 10


class Scratch:
    """Room for the intermediate sums of a block, used again and again."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def registers(self, count: int, dtype: np.dtype, length: int) -> list[np.ndarray]:
        """Return ``count`` arrays of ``length`` elements, with anything in them."""
        size = -(-length * dtype.itemsize // 64) * 64
        if self._room.nbytes < count * size:
            self._room = np.empty(count * size, np.uint8)
        return [self._room[i * size : i * size + length * dtype.itemsize].view(dtype) for i in range(count)]


class Memory:
    """Private memory by name, used again and again; it grows to the largest size that was asked for."""

    def __init__(self) -> None:
        self._rooms: dict[object, np.ndarray] = {}

    def __call__(self, name: object, size: int) -> np.ndarray:
        """Return ``size`` bytes, with anything in them."""
        found = self._rooms.get(name)
        if found is None or found.nbytes < size:
            found = self._rooms[name] = np.empty(size, np.uint8)
        return found[:size]


def ordered_sum(
    plan: Schedule, pieces: Sequence[np.ndarray], out: np.ndarray, scratch: Scratch, *, in_place: bool = False
) -> None:
    """Add up partial sums in the order of a schedule.

    Args:
        plan: of `headwater.runtime.collectives.tree.schedule`.
        pieces: the partial sums, 1-d arrays of one length and dtype; left as they are.
        out: gets the result. May be one of the pieces.
        scratch: room for intermediate sums.
        in_place: with a single piece, whether it already is ``out``.

    Example:
        >>> from headwater.runtime.collectives.tree import schedule
        >>> out = np.empty(2)
        >>> ordered_sum(schedule((0, 2), ((0, 1), (1, 2))), [np.ones(2), np.ones(2)], out, Scratch())
        >>> out.tolist()
        [2.0, 2.0]
    """
    if not plan.steps:
        if not in_place:
            np.copyto(out, pieces[0])
        return
    if len(plan.steps) == 1:
        _, left, right = plan.steps[0]
        np.add(pieces[left], pieces[right], out=out)
        return
    length = len(out)
    block = max(1, _BLOCK_BYTES // out.itemsize)
    registers = scratch.registers(plan.registers, out.dtype, min(block, length))
    for start in range(0, length, block):
        stop = min(start + block, length)
        places = [piece[start:stop] for piece in pieces]
        places += [register[: stop - start] for register in registers]
        places.append(out[start:stop])
        for target, left, right in plan.steps:
            np.add(places[left], places[right], out=places[target])
