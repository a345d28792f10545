"""Top-k: the first rows of a sorted order are kept while reading, and nothing is sorted as a whole."""

from __future__ import annotations

from ...ops.limit import Limit
from ...ops.node import Node
from ...ops.sort import Sort, TopK
from ..plan import RuleEvent
from ..rewrite import Roots, consumers, rewrite, title

NAME = "top_k"

#: most rows kept in memory in place of a sort that may spill
MAX_ROWS = 1_000_000


def top_k(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Replace a limit over a sort by a TopK."""
    events: list[RuleEvent] = []
    counts = consumers(roots)

    def step(node: Node, old: Node) -> Node:
        if isinstance(node, Limit) and isinstance(node.input, TopK):
            return TopK(node.input.input, node.input.keys, min(node.count, node.input.count))
        if not isinstance(node, Limit) or not isinstance(node.input, Sort):
            return node
        sort = node.input
        if counts[old.inputs[0]] > 1:
            events.append(RuleEvent(NAME, False, f"{title(sort)} is shared, so it is sorted anyway"))
        elif node.count > MAX_ROWS:
            reason = f"{node.count:,} rows are more than {MAX_ROWS:,}, which may not fit in memory"
            events.append(RuleEvent(NAME, False, f"Limit {node.count} over {title(sort)}: {reason}"))
        else:
            events.append(RuleEvent(NAME, True, f"Limit {node.count} over {title(sort)}"))
            return TopK(sort.input, sort.keys, node.count)
        return node

    return rewrite(roots, step), events
