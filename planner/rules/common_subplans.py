"""Common subplans: what several consumers read is one object of the plan, computed once."""

from __future__ import annotations

from ...ops.scan import Scan
from ..plan import RuleEvent
from ..rereading import is_rereadable
from ..rewrite import Roots, consumers, intern, title, walk

NAME = "common_subplans"


def common_subplans(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Make equal subplans one, and tell which are shared and which scans are read again."""
    roots = intern(roots)
    counts = consumers(roots)
    events = []
    for node in walk(roots):
        if counts[node] < 2:
            continue
        if is_rereadable(node):
            what = node.source.describe() if isinstance(node, Scan) else title(node)
            detail = (
                f"{what}: read again by each of {counts[node]} consumers, as that costs no more than a block"
            )
            events.append(RuleEvent(NAME, False, detail))
        else:
            events.append(RuleEvent(NAME, True, f"{title(node)}: computed once for {counts[node]} consumers"))
    return roots, events
