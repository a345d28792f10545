"""Limit pushdown: scans stop once each partition has as many rows as the limit could ask for."""

from __future__ import annotations

from dataclasses import replace

from ...ops.limit import Limit
from ...ops.node import Node
from ...ops.project import Project
from ...ops.repartition import Repartition
from ...ops.scan import Scan
from ...ops.sort import Sort, TopK
from ...ops.union import Union
from ..plan import RuleEvent
from ..rereading import is_rereadable
from ..rewrite import Roots, consumers, over, rewrite, title, walk

NAME = "limit_pushdown"


def limit_pushdown(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Sink limits below projections, join limits of limits, and bound the scans below them."""
    roots, sunk = _sink(roots)
    roots, bounded = _bound_scans(roots)
    return roots, sunk + bounded


def _sink(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Take limits below projections, from the top down: Limit, Project*, x becomes Project*, Limit, x."""
    events: list[RuleEvent] = []
    counts = consumers(roots)
    nodes = list(walk(roots))
    carried: dict[Node, int] = {}  # limit that arrives above a node read once
    lands: dict[Node, int] = {}  # limit to apply right above a node's replacement
    edges: dict[Node, int] = {}  # limit a node puts on its input, which others read too
    for node in reversed(nodes):
        count = carried.pop(node, None)
        if isinstance(node, Limit):
            if count is not None:
                events.append(RuleEvent(NAME, True, f"Limit {count} over Limit {node.count} is one"))
            count = node.count if count is None else min(count, node.count)
        elif isinstance(node, Project) and count is not None:
            events.append(RuleEvent(NAME, True, f"Limit {count} below {title(node)}"))
        elif count is not None:
            lands[node] = count
            continue
        else:
            continue
        if counts[node.input] == 1:
            carried[node.input] = count
        else:
            edges[node] = count
    done: dict[Node, Node] = {}
    for node in nodes:
        inputs = [done[child] for child in node.inputs]
        if node in edges:
            inputs = [Limit(inputs[0], edges[node])]
        new = inputs[0] if isinstance(node, Limit) else over(node, inputs)
        done[node] = Limit(new, lands[node]) if node in lands else new
    return {name: done[node] for name, node in roots.items()}, events


def _bound_scans(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Tell scans how many rows of each partition the limit above can use at most."""
    events: list[RuleEvent] = []
    counts = consumers(roots)
    nodes = list(walk(roots))
    bounds: dict[Node, int] = {}  # rows of each partition that suffice
    for node in reversed(nodes):
        bound = node.count if isinstance(node, Limit) else bounds.get(node)
        if bound is None:
            continue
        for child in node.inputs:
            if _keeps_rows(node) and (
                counts[child] == 1 or (isinstance(child, Scan) and is_rereadable(child))
            ):
                bounds[child] = bound
            elif isinstance(node, Limit):
                events.append(RuleEvent(NAME, False, f"Limit {bound}: {title(child)} is shared"))
        if not _keeps_rows(node) and not isinstance(node, Scan | Sort | TopK):  # those are for top_k
            events.append(RuleEvent(NAME, False, f"Limit {bound} stays above {title(node)}"))

    def bounded(scan: Node, bound: int) -> Node:
        if not isinstance(scan, Scan) or (scan.limit is not None and scan.limit <= bound):
            return scan
        events.append(RuleEvent(NAME, True, f"Limit {bound} into Scan {scan.source.describe()}"))
        return replace(scan, limit=bound)

    def step(node: Node, old: Node) -> Node:
        bound = node.count if isinstance(node, Limit) else bounds.get(old)
        if bound is None or not _keeps_rows(node):
            return node
        free = [counts[child] == 1 or is_rereadable(child) for child in old.inputs]
        return over(node, [bounded(new, bound) if ok else new for ok, new in zip(free, node.inputs)])

    return rewrite(roots, step), events


def _keeps_rows(node: Node) -> bool:
    """Whether the first rows of a node's partitions are made from the first rows of its inputs' alone."""
    return isinstance(node, Limit | Project | Union) or (isinstance(node, Repartition) and node.count == 1)
