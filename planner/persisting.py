"""Persisting: what is persisted is planned on its own, so that its stage is the same in every plan.

The kept blocks of a stage are found by its lineage key. So neither who reads them nor what else the plan holds
may change how it is computed: to all rules above it is a sealed leaf.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ops.node import Node
from ..ops.persist import Persist, strongest
from .rewrite import Roots, rewrite, walk
from .sealing import Sealed


def seal_persisted(roots: Roots, seal: Callable[[Persist], Sealed]) -> dict[str, Node]:
    """Put a sealed leaf in the place of everything that is persisted.

    Args:
        roots: the plan.
        seal: plans what is below a Persist, whose own persisted parts are sealed already, and makes its leaf;
            called once for each, inner ones first.

    Returns:
        The plan over sealed leaves.
    """
    sealed: dict[Persist, Sealed] = {}

    def step(node: Node, old: Node) -> Node:
        if not isinstance(node, Persist):
            return node
        if node not in sealed:
            sealed[node] = seal(node)
        return sealed[node]

    return rewrite(roots, step)


def agree(roots: Roots) -> dict[str, Node]:
    """Where one dataset is persisted in several ways, keep it in the strongest everywhere."""
    wishes: dict[str, Persist] = {}
    for node in walk(roots):
        if isinstance(node, Persist):
            other = wishes.setdefault(node.key, node)
            wishes[node.key] = Persist(other.input, *strongest(node, other))
    if not wishes:
        return dict(roots)

    def step(node: Node, old: Node) -> Node:
        if not isinstance(node, Persist):
            return node
        wish = wishes[node.key]
        same = (node.level, node.replicas) == (wish.level, wish.replicas)
        return node if same else Persist(node.input, wish.level, wish.replicas)

    return rewrite(roots, step)
