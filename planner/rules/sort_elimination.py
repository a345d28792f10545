"""Sort elimination: a sort whose order nothing above it can see isn't done."""

from __future__ import annotations

from ...ops.aggregate import Aggregate
from ...ops.distinct import Distinct
from ...ops.filter import Filter
from ...ops.join import Join
from ...ops.node import Node
from ...ops.project import Project
from ...ops.repartition import Repartition
from ...ops.sort import Sort, TopK
from ...ops.union import Union
from ..plan import RuleEvent
from ..rewrite import Roots, over, title, walk

NAME = "sort_elimination"

#: aggregations whose result depends on the order of the rows
ORDERED = frozenset({"first", "last"})


def sort_elimination(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Drop sorts below operators that don't depend on the order of their input."""
    events: list[RuleEvent] = []
    nodes = list(walk(roots))
    ordered: set[Node] = set(roots.values())  # nodes whose order somebody sees
    for node in reversed(nodes):
        for child, needed in zip(node.inputs, _order_needed(node, node in ordered)):
            if needed:
                ordered.add(child)
    done: dict[Node, Node] = {}
    for node in nodes:
        new = over(node, [done[child] for child in node.inputs])
        if isinstance(node, Sort) and (node not in ordered or _is_one_row(node.input)):
            why = "nothing above depends on its order" if node not in ordered else "it reads a single row"
            events.append(RuleEvent(NAME, True, f"{title(node)}: {why}"))
            new = new.inputs[0]
        elif (
            isinstance(node, Sort | TopK) and isinstance(new.inputs[0], Sort) and _covers(node, new.inputs[0])
        ):
            events.append(
                RuleEvent(NAME, True, f"{title(new.inputs[0])}: {title(node)} decides the whole order")
            )
            new = over(new, [new.inputs[0].inputs[0]])
        done[node] = new
    return {name: done[node] for name, node in roots.items()}, events


def _order_needed(node: Node, above: bool) -> tuple[bool, ...]:
    """For each input, whether its row order can be seen in the output, or in the output's order."""
    if isinstance(node, Aggregate):
        return (any(a.function in ORDERED for a in node.aggregations),)
    if isinstance(node, Distinct):
        return (above or node.keys is not None,)
    if isinstance(node, Join):
        return (above, above and node.how not in ("semi", "anti"))
    if isinstance(node, Filter | Project | Union | Repartition):
        return (above,) * len(node.inputs)
    return (True,) * len(node.inputs)  # Sort and TopK are stable; Limit, Sample, MapBatches … count rows


def _covers(upper: Sort | TopK, lower: Sort) -> bool:
    """Whether rows that tie in the upper sort tie in the lower one, which then decides nothing."""
    return {key.column for key in lower.keys} <= {key.column for key in upper.keys}


def _is_one_row(node: Node) -> bool:
    return isinstance(node, Aggregate) and not node.keys
