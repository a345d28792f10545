"""Merge projections: one projection in place of two, unless work would be done twice."""

from __future__ import annotations

from collections import Counter

from ...ops.node import Node
from ...ops.project import Project
from ..plan import RuleEvent
from ..rewrite import Roots, consumers, rewrite, title
from .inlining import MAX_TERMS, column_uses, definitions, inline, inlined_terms, is_cheap

NAME = "merge_projections"


def merge_projections(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Write a projection of a projection over the lower one's input."""
    events: list[RuleEvent] = []
    counts = consumers(roots)

    def step(node: Node, old: Node) -> Node:
        if not isinstance(node, Project) or not isinstance(node.input, Project):
            return node
        reason = f"{title(node.input)} is shared" if counts[old.inputs[0]] > 1 else _costly(node, node.input)
        if reason:
            events.append(RuleEvent(NAME, False, f"{title(node)}: {reason}"))
            return node
        mapping = definitions(node.input)
        merged = Project(node.input.input, tuple((name, inline(expr, mapping)) for name, expr in node.exprs))
        if merged.schema != node.schema:
            events.append(RuleEvent(NAME, False, f"{title(node)}: the types would change"))
            return node
        events.append(RuleEvent(NAME, True, f"{title(node)} takes in {title(node.input)}"))
        return merged

    return rewrite(roots, step), events


def _costly(upper: Project, lower: Project) -> str:
    """Return why merging would compute something twice or make an expression too deep; empty if not."""
    mapping = definitions(lower)
    uses = Counter(name for _, expr in upper.exprs for name in column_uses(expr))
    twice = next((name for name, count in uses.items() if count > 1 and not is_cheap(mapping[name])), None)
    if twice is not None:
        return f"{twice!r} is used {uses[twice]} times and would be computed as often"
    if any(inlined_terms(expr, mapping) > MAX_TERMS for _, expr in upper.exprs):
        return f"an expression would have more than {MAX_TERMS} terms"
    return ""
