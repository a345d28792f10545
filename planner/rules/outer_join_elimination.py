"""Outer join elimination: a left join whose null-padded rows are filtered away is an inner join.

Galindo-Legaria and Rosenthal, Outerjoin Simplification and Reordering, TODS 1997.
"""

from __future__ import annotations

from dataclasses import replace

from ...ops.expressions.analysis import conjuncts, null_rejecting
from ...ops.filter import Filter
from ...ops.join import Join
from ...ops.node import Node
from ..plan import RuleEvent
from ..rewrite import Roots, consumers, rewrite, title

NAME = "outer_join_elimination"


def outer_join_elimination(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Make a left join inner where the filter right above it is never true for null right columns."""
    events: list[RuleEvent] = []
    counts = consumers(roots)

    def step(node: Node, old: Node) -> Node:
        if not isinstance(node, Filter) or not isinstance(node.input, Join) or node.input.how != "left":
            return node
        join = node.input
        padded = {output for _, output in join.right_columns}
        rejecting = [expr for expr in conjuncts(node.predicate) if _rejects(expr, padded)]
        if not rejecting:
            return node
        if counts[old.inputs[0]] > 1:
            events.append(RuleEvent(NAME, False, f"{title(join)} is shared"))
            return node
        events.append(
            RuleEvent(NAME, True, f"{title(join)} is inner, as {rejecting[0]} drops unmatched rows")
        )
        return Filter(replace(join, how="inner"), node.predicate)

    return rewrite(roots, step), events


def _rejects(expr, padded: set[str]) -> bool:
    columns = expr.columns() & padded
    return bool(columns) and null_rejecting(expr, columns)
