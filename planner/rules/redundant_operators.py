"""Redundant operators: what gives back its input, and unions of unions."""

from __future__ import annotations

from ...ops.aggregate import Aggregate
from ...ops.distinct import Distinct
from ...ops.limit import Limit
from ...ops.node import Node
from ...ops.project import Project
from ...ops.union import Union
from ..plan import RuleEvent
from ..rewrite import Roots, consumers, rewrite, title, walk
from .inlining import is_identity

NAME = "redundant_operators"


def redundant_operators(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Drop identity projections, repeated distincts, limits of one row; flatten unions."""
    events: list[RuleEvent] = []
    nested = _nested_unions(roots)

    def step(node: Node, old: Node) -> Node:
        if isinstance(node, Union) and isinstance(old, Union):
            return node if old in nested else _flat(node, old, nested, events)
        reason = _redundant(node)
        if reason:
            events.append(RuleEvent(NAME, True, f"{title(node)} is dropped: {reason}"))
            return node.inputs[0]
        return node

    return rewrite(roots, step), events


def _redundant(node: Node) -> str:
    if isinstance(node, Project) and is_identity(node):
        return "it gives its input's columns"
    if (
        isinstance(node, Limit)
        and node.count > 0
        and isinstance(node.input, Aggregate)
        and not node.input.keys
    ):
        return "its input is one row"
    if isinstance(node, Distinct):
        below = node.input
        unique = _unique_columns(below)
        if unique is not None and unique <= set(node.key_columns):
            return f"rows of {title(below)} are distinct already"
    return ""


def _unique_columns(node: Node) -> set[str] | None:
    """Columns no two rows agree on, or None where none are known."""
    if isinstance(node, Aggregate):
        return set(node.keys)
    if isinstance(node, Distinct):
        return set(node.key_columns)
    return None


def _nested_unions(roots: Roots) -> set[Node]:
    """Unions read by one other union only, which flattens them."""
    counts = consumers(roots)
    return {
        child
        for node in walk(roots)
        if isinstance(node, Union)
        for child in node.sources
        if isinstance(child, Union) and counts[child] == 1
    }


def _flat(node: Union, old: Union, nested: set[Node], events: list[RuleEvent]) -> Node:
    """Replace a union's nested unions by their inputs, in order, in one step for the whole nest."""
    if len(node.sources) == 1:
        events.append(RuleEvent(NAME, True, "Union of 1 is dropped"))
        return node.sources[0]
    if not any(child in nested for child in old.sources):
        return node
    sources: list[Node] = []
    stack: list[tuple[Node, Node]] = [(node, old)]
    while stack:
        new, before = stack.pop()
        if before in nested or before is old:
            assert isinstance(new, Union)
            stack.extend(reversed(list(zip(new.sources, before.inputs))))
        else:
            sources.append(new)
    events.append(RuleEvent(NAME, True, f"nested unions become one Union of {len(sources)}"))
    return Union(tuple(sources))
