"""Merge filters: one filter of a conjunction in place of two."""

from __future__ import annotations

from ...ops.expressions.analysis import conjuncts, may_raise
from ...ops.filter import Filter
from ...ops.node import Node
from ..plan import RuleEvent
from ..rewrite import Roots, consumers, over, walk
from .predicates import all_of

NAME = "merge_filters"


def merge_filters(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Join runs of filters into one each, unless the lower one is shared or guards the upper one.

    A predicate that may raise stays above the filter below it, whose rows are the only ones it was
    written for.
    """
    events: list[RuleEvent] = []
    counts = consumers(roots)
    runs: dict[Node, list[Filter]] = {}  # for a filter, those above that join it, topmost first
    done: dict[Node, Node] = {}
    nodes = list(walk(roots))
    for node in reversed(nodes):
        if not isinstance(node, Filter) or not isinstance(node.input, Filter):
            continue
        if counts[node.input] > 1:
            events.append(RuleEvent(NAME, False, f"Filter {node.predicate}: the filter below it is shared"))
        elif may_raise(node.predicate, node.input.schema):
            events.append(
                RuleEvent(
                    NAME, False, f"Filter {node.predicate} may raise on rows that the filter below drops"
                )
            )
        else:
            run = runs.pop(node, [])
            run.append(node)
            runs[node.input] = run
    merged_away = {upper for run in runs.values() for upper in run}
    for node in nodes:
        if node in merged_away:
            done[node] = done[node.input]
        elif node in runs:
            assert isinstance(node, Filter)
            parts = [part for item in (node, *reversed(runs[node])) for part in conjuncts(item.predicate)]
            events.append(
                RuleEvent(NAME, True, f"{len(runs[node]) + 1} filters become one of {len(parts)} terms")
            )
            done[node] = Filter(done[node.input], all_of(parts))
        else:
            done[node] = over(node, [done[child] for child in node.inputs])
    return {name: done[node] for name, node in roots.items()}, events
