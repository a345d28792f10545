"""Rewriting a DAG of nodes: walk it, make equal subplans one object, rebuild it bottom up.

Everything here is iterative and visits each node once, so that plans of thousands of nodes cost
linear time and no Python recursion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..ops.node import Node
from .plan import RuleEvent

#: output name to node: a logical plan
Roots = Mapping[str, Node]

#: a rule: a pure function of a logical plan, giving the rewritten plan and what was done or refused
Rule = Callable[[Roots], tuple[Roots, Sequence[RuleEvent]]]


def walk(roots: Roots) -> Iterator[Node]:
    """Yield every node of a plan, inputs before the nodes that read them, each object once."""
    seen: set[Node] = set()
    for root in roots.values():
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                yield node
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(node.inputs))


def consumers(roots: Roots) -> Counter[Node]:
    """Count who reads each node: once for each edge from a consumer, once for being an output."""
    counts = Counter(child for node in walk(roots) for child in node.inputs)
    counts.update(set(roots.values()))
    return counts


def rewrite(roots: Roots, step: Callable[[Node, Node], Node]) -> dict[str, Node]:
    """Rebuild a plan bottom up.

    Args:
        roots: the plan.
        step: takes a node over its rewritten inputs, and the node as it was; returns what replaces it.

    Returns:
        The new plan; a subplan in which nothing changed is the same object as before.

    Example:
        >>> rewrite({}, lambda node, old: node)
        {}
    """
    done: dict[Node, Node] = {}
    for node in walk(roots):
        done[node] = step(over(node, [done[child] for child in node.inputs]), node)
    return {name: done[node] for name, node in roots.items()}


def over(node: Node, inputs: Sequence[Node]) -> Node:
    """Return a node over other inputs; the node itself if they are the ones it has."""
    if all(new is old for new, old in zip(inputs, node.inputs)):
        return node
    return node.with_inputs(inputs)


def intern(roots: Roots, table: dict[str, Node] | None = None) -> dict[str, Node]:
    """Make equal subplans (equal lineage keys) one object: hash-consing.

    Args:
        roots: the plan.
        table: key to object, kept from call to call so that an unchanged plan is the same objects.

    Returns:
        The plan in which equal means identical.
    """
    canonical = {} if table is None else table
    return rewrite(roots, lambda node, _: canonical.setdefault(node.key, node))


def same(left: Roots, right: Roots) -> bool:
    """Return whether two plans are the very same objects."""
    return all(left[name] is right[name] for name in left)


def title(node: Node, width: int = 60) -> str:
    """Name a node for a message: its operator and arguments in one short line."""
    text = f"{type(node).__name__} {node.describe()}".rstrip()
    return text if len(text) <= width else text[: width - 1] + "…"
