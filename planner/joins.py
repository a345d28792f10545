"""Joins: whether a join is broadcast, shuffled, or needs no exchange at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ops.join import Join, JoinKernel
from .partitioning import Hashed, Partitioning, positions
from .rewrite import title
from .sizes import estimate
from .stages import Fragment
from .text import human_bytes

if TYPE_CHECKING:
    from .lowering import Lowering

#: partitions that are there already are used if they are at least this share of those wanted
ENOUGH = 0.25


def lower_join(low: Lowering, node: Join, left: Fragment, right: Fragment) -> Fragment:
    """Join without an exchange where both sides lie right, else broadcast a small right side, else shuffle.

    The left side keeps its order, so it is never the one that is broadcast.
    """
    if left.partitions == right.partitions == 1 and node.strategy == "auto":
        return _join(low, node, left, right, "join", None)
    wanted = low.count(left.estimate.bytes + right.estimate.bytes)
    together = _lie_together(low, node, left, right, wanted)
    if not together and _broadcasts(low, node, left, right):
        return _join(low, node, left, low.builder.broadcast(right), "broadcast join", left.known)
    left, right = _shuffled(low, node, left, right, wanted)
    return _join(low, node, left, right, "join", left.known)


def _join(
    low: Lowering, node: Join, left: Fragment, right: Fragment, label: str, known: Partitioning
) -> Fragment:
    kernel = JoinKernel(node.left_on, node.right_on, node.how, node.right_columns, node.schema)
    size = estimate(node, [left.estimate, right.estimate])
    name = label if node.how == "inner" else f"{node.how} {label}"
    return low.builder.step(kernel, [left, right], node.schema, node.key, size, name, known)


def _broadcasts(low: Lowering, node: Join, left: Fragment, right: Fragment) -> bool:
    """Decide, and note why."""
    size, most = right.estimate.bytes, low.options.broadcast_bytes
    if node.strategy != "auto":
        low.builder.trace("broadcast_join", node.strategy == "broadcast", f"{title(node)}: as strategy= says")
        return node.strategy == "broadcast"
    if not low.enabled("broadcast_join"):
        return False
    fits = size <= most
    detail = f"{title(node)}: the right side is about {human_bytes(size)}, "
    detail += f"at most {human_bytes(most)}" if fits else f"more than {human_bytes(most)}"
    if not fits and node.how == "inner" and left.estimate.bytes <= most:
        detail += (
            "; the left side would fit, but its order has to be kept (exchange the sides to broadcast it)"
        )
    low.builder.trace("broadcast_join", fits, detail)
    return fits


def _lie_together(low: Lowering, node: Join, left: Fragment, right: Fragment, wanted: int) -> bool:
    """Whether equal keys of both sides are in the same partition numbers already."""
    at = _usable(low, left.known, node.left_on, wanted)
    return (
        at is not None and left.known is not None and right.known == _matching(left.known, node.right_on, at)
    )


def _shuffled(
    low: Lowering, node: Join, left: Fragment, right: Fragment, wanted: int
) -> tuple[Fragment, Fragment]:
    """Bring equal keys of both sides to the same partitions, moving only the sides that lie otherwise."""
    by_left = _usable(low, left.known, node.left_on, wanted)
    by_right = _usable(low, right.known, node.right_on, wanted)
    if by_left is not None and left.known is not None:
        target = _matching(left.known, node.right_on, by_left)
        both = right.known == target
        low.builder.trace(
            "exchange_elimination",
            True,
            f"{title(node)}: {'both sides lie' if both else 'the left side lies'} right",
        )
        return left, right if both else _hashed(low, right, target.keys, target.count)
    if by_right is not None and right.known is not None:
        target = _matching(right.known, node.left_on, by_right)
        low.builder.trace("exchange_elimination", True, f"{title(node)}: the right side lies right")
        return _hashed(low, left, target.keys, target.count), right
    return _hashed(low, left, node.left_on, wanted), _hashed(low, right, node.right_on, wanted)


def _hashed(low: Lowering, side: Fragment, keys: tuple[str, ...], count: int) -> Fragment:
    """Bring equal keys of a side together, by the exchange that it has below if that can do it."""
    rehashed = low.builder.rehashed if low.enabled("exchange_elimination") else low.builder.hashed
    return rehashed(side, keys, count)


def _usable(low: Lowering, known: Partitioning, keys: tuple[str, ...], wanted: int) -> tuple[int, ...] | None:
    """Return which keys a side is hashed by, if that is among the join's keys and into enough partitions."""
    if known is None or known.count < wanted * ENOUGH or not low.enabled("exchange_elimination"):
        return None
    return positions(known, keys)


def _matching(known: Hashed, keys: tuple[str, ...], at: tuple[int, ...]) -> Hashed:
    return Hashed(tuple(keys[position] for position in at), known.count)
