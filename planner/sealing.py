"""Sealing: what a Sample draws from is planned on its own, so that it draws the same rows in every plan.

What is persisted is sealed as well, see persisting.py.

A Sample picks rows by partition and position. Which those are depends on how its input is planned,
and must not depend on who else reads that input, or on what is done with the sample. So the input is
optimized alone, then stands in the plan as a sealed leaf that no rule looks into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..lineage.graph import Dependency
from ..ops.node import Node
from ..ops.persist import Persist
from ..ops.sample import Sample
from ..ops.scan import Scan
from .rewrite import Roots, over, rewrite, walk


@dataclass(frozen=True, eq=False, repr=False)
class Sealed(Node):
    """A leaf that stands for an optimized subplan."""

    content: Node

    def with_inputs(self, inputs: Sequence[Node]) -> Sealed:
        return self

    def derive_schema(self) -> pa.Schema:
        return self.content.schema

    def parameters(self) -> Any:
        return self.content.key

    def describe(self) -> str:
        return f"{type(self.content).__name__} {self.content.describe()}".rstrip()


def seal(roots: Roots, optimize: Callable[[Node], Node]) -> dict[str, Node]:
    """Optimize each input of a Sample alone and put a sealed leaf in its place, for all its consumers.

    Args:
        roots: the plan.
        optimize: rewrites one subplan, whose own samples are sealed already.

    Returns:
        The plan over sealed leaves. A bare Scan is left open: rules change only copies of it.
    """
    drawn_from = {node.input for node in walk(roots) if isinstance(node, Sample)}
    done: dict[Node, Node] = {}
    for node in walk(roots):
        new = over(node, [done[child] for child in node.inputs])
        done[node] = (
            Sealed(optimize(new)) if node in drawn_from and not isinstance(node, Scan | Sealed) else new
        )
    return {name: done[node] for name, node in roots.items()}


def unseal(roots: Roots, only_narrow: bool = False) -> dict[str, Node]:
    """Put sealed subplans back, inner ones included.

    Args:
        roots: the plan.
        only_narrow: leave those sealed whose partitions are made by an exchange, because pruning
            their columns would change estimates, and with them the number of partitions; and what is persisted.

    Returns:
        The plan with its subplans.
    """
    opened: dict[Node, Node] = {}
    stack = [node for node in walk(roots) if isinstance(node, Sealed)]
    while stack:
        sealed = stack[-1]
        if only_narrow and isinstance(sealed.content, Persist):
            opened[stack.pop()] = sealed
            continue
        inner = [
            node for node in walk({"": sealed.content}) if isinstance(node, Sealed) and node not in opened
        ]
        if inner and sealed not in opened:
            stack.extend(inner)
            continue
        stack.pop()
        if sealed not in opened:
            closed = only_narrow and not _is_narrow(sealed.content)
            opened[sealed] = sealed if closed else _replace(sealed.content, opened)
    return rewrite(roots, lambda node, old: opened.get(old, node))


def _replace(content: Node, opened: dict[Node, Node]) -> Node:
    return rewrite({"": content}, lambda node, old: opened.get(old, node))[""]


def _is_narrow(content: Node) -> bool:
    """Whether a subplan's partitions are those of its scans, whatever the estimates say."""
    stack, seen = [content], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if Dependency.WIDE in node.dependencies:
            return False
        pairs = zip(node.inputs, node.dependencies)
        stack.extend(child for child, dependency in pairs if dependency is Dependency.NARROW)
    return True
