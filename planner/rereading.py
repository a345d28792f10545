"""Rereading: which subplans several consumers had better each read again than share as blocks.

A scan of a binary format costs about what reading a block costs, and each consumer then reads its
own columns and rows alone. Text has to be parsed, so a shared scan of it is kept as blocks.
"""

from __future__ import annotations

from ..ops.expressions.expr import Column
from ..ops.node import Node
from ..ops.project import Project
from ..ops.scan import Scan

#: kinds of sources that are parsed on every read
PARSED = frozenset({"csv", "json", "text"})


def is_rereadable(node: Node) -> bool:
    """Return whether a shared node is read again by each consumer: an unfiltered scan of a binary format."""
    if isinstance(node, Project) and all(isinstance(expr, Column) for _, expr in node.exprs):
        node = node.input
    return isinstance(node, Scan) and node.predicate is None and node.source.kind not in PARSED
