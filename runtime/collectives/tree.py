"""The fixed tree: in which order numbered parts are added, whoever carries them.

The range of indices ``start … stop - 1`` is the sum of its two halves, cut at the largest power of two below its
length; a range of one index is that part. So the tree over ``0 … S - 1`` is the binary tree over the next power of
two with the leaves beyond S left out, and it doesn't know members. A member adds up the largest whole subtrees of its
own range; whoever has those of all members can finish the tree, and has done the same additions as a single
process would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

#: first index, and the one after the last
Span = tuple[int, int]


def halves(span: Span) -> tuple[Span, Span]:
    """Cut a range of two or more indices as the tree does.

    Example:
        >>> halves((0, 5))
        ((0, 4), (4, 5))
    """
    start, stop = span
    middle = start + (1 << (stop - start - 1).bit_length() - 1)
    return (start, middle), (middle, stop)


@lru_cache(maxsize=1024)
def whole_subtrees(total: int, start: int, stop: int) -> tuple[Span, ...]:
    """Return the largest subtrees that lie wholly in a contiguous range, in order.

    Args:
        total: how many indices the whole tree has.
        start, stop: the range.

    Example:
        >>> whole_subtrees(8, 3, 8)
        ((3, 4), (4, 8))
        >>> whole_subtrees(8, 0, 8)
        ((0, 8),)
    """
    found = []
    while start < stop:
        size = 1
        while start % (2 * size) == 0 and size < total and min(start + 2 * size, total) <= stop:
            size *= 2
        found.append((start, min(start + size, total)))
        start += size
    return tuple(found)


def coalesce(spans: list[Span]) -> list[Span]:
    """Join ranges that touch.

    Example:
        >>> coalesce([(4, 6), (0, 2), (2, 4), (7, 8)])
        [(0, 6), (7, 8)]
    """
    joined: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


@dataclass(frozen=True)
class Schedule:
    """How partial sums are completed, as additions of numbered places.

    Places are the partial sums in order, then ``registers`` scratch places, then the result.

    Attributes:
        pieces: how many partial sums there are.
        registers: how many scratch places are needed.
        steps: (target, left, right): target becomes left + right. Only the last one writes to the result. Empty
            if there is a single piece, which is the result.
    """

    pieces: int
    registers: int
    steps: tuple[tuple[int, int, int], ...]


@lru_cache(maxsize=1024)
def schedule(span: Span, pieces: tuple[Span, ...]) -> Schedule:
    """Plan how the tree over a range is finished from partial sums.

    Args:
        span: the range; itself a subtree.
        pieces: subtrees that cover it, in order.

    Raises:
        ValueError: the pieces aren't subtrees that cover the range.

    Example:
        >>> schedule((0, 4), ((0, 2), (2, 3), (3, 4))).steps
        ((3, 1, 2), (4, 0, 3))
    """
    place = {piece: number for number, piece in enumerate(pieces)}
    if len(pieces) > 1 and coalesce(list(pieces)) != [span]:
        raise ValueError(f"{pieces} don't cover {span}")
    steps: list[tuple[int, int, int]] = []

    def combine(part: Span, free: int) -> int:
        if part in place:
            return place[part]
        if part[1] - part[0] < 2:
            raise ValueError(f"{part} is in none of {pieces}, which aren't all subtrees of {span}")
        first, second = halves(part)
        left = combine(first, free)
        right = combine(second, free + (left >= len(pieces)))
        steps.append((len(pieces) + free, left, right))
        return len(pieces) + free

    if combine(span, 0) < len(pieces):
        return Schedule(len(pieces), 0, ())
    _, left, right = steps.pop()
    used = max((target for target, _, _ in steps), default=len(pieces) - 1) + 1 - len(pieces)
    return Schedule(len(pieces), used, (*steps, (len(pieces) + used, left, right)))
