"""Node: one immutable, typed operator of the logical plan.

A node derives its schema when it is built, so that wrong columns and types are named there, at the
user's own line. Nodes are compared by lineage key: same key, same content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from ..lineage.graph import Dependency
from ..lineage.keys import lineage_key


class Node:
    """A logical operator over zero or more inputs.

    Subclasses are frozen dataclasses (``eq=False, repr=False``) that call ``self.check()`` from
    ``__post_init__`` and give `inputs`, `with_inputs`, `derive_schema`, `parameters` and `describe`.
    """

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes this one reads, in order."""
        return (self.input,) if hasattr(self, "input") else ()

    def with_inputs(self, inputs: Sequence[Node]) -> Node:
        """Return the same operator over other inputs; its schema is derived and checked again."""
        raise NotImplementedError

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """How this node depends on each input; narrow unless a subclass says otherwise."""
        return (Dependency.NARROW,) * len(self.inputs)

    def derive_schema(self) -> pa.Schema:
        """Compute the output schema, raising the error the user should see where it can't be."""
        raise NotImplementedError

    def parameters(self) -> Any:
        """What, besides the inputs, decides the content: nested tuples, scalars, types, functions."""
        raise NotImplementedError

    def describe(self) -> str:
        """The operator's arguments in one short line, for plan texts."""
        return ""

    def check(self) -> None:
        """Derive the schema now; called when the node is built."""
        _ = self.schema

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows this node gives."""
        return self.derive_schema()

    @cached_property
    def key(self) -> str:
        """The lineage key: 32 hexadecimal digits."""
        return lineage_key(type(self).__name__, self.parameters(), [node.key for node in self.inputs])

    def walk(self) -> Iterator[Node]:
        """Yield every node of the DAG below and with this one, inputs first, each once."""
        seen: set[int] = set()
        stack: list[tuple[Node, bool]] = [(self, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                yield node
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(node.inputs))

    def __repr__(self) -> str:
        return plan_text(self)


def listed(texts: Sequence[str], most: int = 20) -> str:
    """Join texts by commas; of more than ``most`` only the first, and how many are left out.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b, … 1 more'
    """
    more = [f"… {len(texts) - most} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


def plan_text(node: Node) -> str:
    """Write a plan as an indented tree, one operator a line, output first.

    A subtree that stands twice is written once and then named by ``(shared)``.
    """
    lines: list[str] = []
    seen: set[str] = set()

    def write(node: Node, depth: int) -> None:
        text = f"{type(node).__name__} {node.describe()}".rstrip()
        repeated = bool(node.inputs) and node.key in seen
        lines.append("  " * depth + text + (" (shared)" if repeated else ""))
        seen.add(node.key)
        if not repeated:
            for child in node.inputs:
                write(child, depth + 1)

    write(node, 0)
    return "\n".join(lines)
