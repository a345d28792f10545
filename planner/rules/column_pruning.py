"""Column pruning: scans read, and exchanges carry, only the columns that something above uses.

One pass from outputs to sources collects what each node must give (the union over its consumers),
one back rebuilds the plan. A scan that is read again by each consumer is pruned for each alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ...ops.aggregate import Aggregate
from ...ops.distinct import Distinct
from ...ops.expressions.expr import Column, Expr
from ...ops.filter import Filter
from ...ops.join import Join
from ...ops.limit import Limit
from ...ops.node import Node
from ...ops.project import Project
from ...ops.repartition import Repartition
from ...ops.sample import Sample
from ...ops.scan import Scan
from ...ops.sort import Sort, TopK
from ...ops.transform import Transform
from ...ops.union import Union
from ..plan import RuleEvent
from ..rereading import is_rereadable
from ..rewrite import Roots, over, walk
from ..widths import type_width

NAME = "column_pruning"

#: operators over whose exchange extra columns of an input would be carried in vain
CARRIERS = Join | Sort | TopK | Repartition | Limit | Distinct | Union


def column_pruning(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Drop columns no consumer uses, from the scans up."""
    events: list[RuleEvent] = []
    nodes = list(walk(roots))
    needs: dict[Node, set[str]] = {node: set() for node in nodes}
    for root in roots.values():
        needs[root].update(root.schema.names)
    asked: dict[Node, tuple[frozenset[str], ...]] = {}
    for node in reversed(nodes):
        asked[node] = input_needs(node, frozenset(needs[node]))
        for child, columns in zip(node.inputs, asked[node]):
            needs[child].update(columns)
    done: dict[Node, Node] = {}
    for node in nodes:
        inputs = []
        for child, columns in zip(node.inputs, asked[node]):
            new = done[child]
            if isinstance(child, Scan) and is_rereadable(child):
                new = prune_scan(child, columns, events)
            inputs.append(_narrowed(new, columns) if isinstance(node, CARRIERS) else new)
        if isinstance(node, Scan):
            done[node] = prune_scan(node, frozenset(needs[node]), [] if is_rereadable(node) else events)
        else:
            done[node] = _pruned(node, inputs, frozenset(needs[node]))
    return {name: done[node] for name, node in roots.items()}, events


def input_needs(node: Node, needs: frozenset[str]) -> tuple[frozenset[str], ...]:
    """Return the columns an operator needs of each input to give the columns ``needs``.

    Each set has at least one column, the narrowest, where only the number of rows counts.
    """
    return tuple(
        columns or frozenset({narrowest(child.schema)}) if child.schema.names else columns
        for child, columns in zip(node.inputs, _input_needs(node, needs))
    )


def _input_needs(node: Node, needs: frozenset[str]) -> tuple[frozenset[str], ...]:
    if isinstance(node, Filter):
        return (needs | node.predicate.columns(),)
    if isinstance(node, Project):
        return (frozenset().union(*(expr.columns() for _, expr in _kept(node, needs))),)
    if isinstance(node, Aggregate):
        used = {a.column for a in _kept_aggregations(node, needs) if a.column is not None}
        return (frozenset(node.keys) | used,)
    if isinstance(node, Join):
        return _join_needs(node, needs)
    if isinstance(node, Sort | TopK):
        return (needs | {key.column for key in node.keys},)
    if isinstance(node, Repartition):
        return (needs | set(node.keys) | {key.column for key in node.sort_keys},)
    if isinstance(node, Distinct):
        return (needs | set(node.key_columns),)
    if isinstance(node, Union):
        return (needs or frozenset({narrowest(node.schema)}),) * len(node.sources)
    if isinstance(node, Limit | Sample):
        return (needs,)
    if isinstance(node, Transform):
        passing = needs & set(node.input.schema.names)
        return (frozenset(node.step.columns) | passing, frozenset(node.state.schema.names))
    return tuple(frozenset(child.schema.names) for child in node.inputs)


def _join_needs(node: Join, needs: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    right = {output: name for name, output in node.right_columns}
    wanted = {output: name for output, name in right.items() if output in needs}
    clashing = {name for output, name in wanted.items() if output != name}  # what the suffix comes from
    left = (needs - set(right)) | set(node.left_on) | clashing
    return frozenset(left), frozenset(wanted.values()) | set(node.right_on)


def prune_scan(scan: Scan, needs: frozenset[str], events: list[RuleEvent]) -> Scan:
    """Return the scan of the needed columns, in the order it has them."""
    names = scan.schema.names
    kept = tuple(name for name in names if name in needs) or (narrowest(scan.schema),) if names else ()
    if len(kept) == len(names):
        return scan
    detail = f"Scan {scan.source.describe()}: {len(kept)} of {len(scan.source.schema)} columns"
    events.append(RuleEvent(NAME, True, detail))
    return Scan(scan.source, kept, scan.predicate, scan.limit)


def _pruned(node: Node, inputs: Sequence[Node], needs: frozenset[str]) -> Node:
    if isinstance(node, Project):
        kept = _kept(node, needs)
        if len(kept) < len(node.exprs):
            return Project(inputs[0], kept)
    if isinstance(node, Aggregate):
        kept_aggregations = _kept_aggregations(node, needs)
        if len(kept_aggregations) < len(node.aggregations):
            return Aggregate(inputs[0], node.keys, kept_aggregations)
    return over(node, inputs)


def _kept(node: Project, needs: frozenset[str]) -> tuple[tuple[str, Expr], ...]:
    kept = tuple(item for item in node.exprs if item[0] in needs)
    return kept or tuple(item for item in node.exprs if item[0] == narrowest(node.schema))


def _kept_aggregations(node: Aggregate, needs: frozenset[str]):
    kept = tuple(a for a in node.aggregations if a.name in needs)
    if kept or node.keys:
        return kept
    cheapest = min(
        node.aggregations, key=lambda a: (a.function != "count", a.column is not None), default=None
    )
    return () if cheapest is None else (cheapest,)


def _narrowed(node: Node, columns: frozenset[str]) -> Node:
    """Return a node without the columns that only operators below it used."""
    if set(node.schema.names) <= columns:
        return node
    return Project(node, tuple((name, Column(name)) for name in node.schema.names if name in columns))


def narrowest(schema: pa.Schema) -> str:
    """Return the column that takes the fewest bytes a row; the first of equals."""
    return min(schema, key=lambda field: type_width(field.type)).name
