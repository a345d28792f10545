"""Rereading: which subplans several consumers had better each read again than share as blocks.

A scan of a binary format costs about what reading a block costs, and each consumer then reads its
own columns and rows alone. Text has to be parsed, so a shared scan of it is kept as blocks.
"""

from __future__ import annotations

from collections.abc import Collection

from ..ops.expressions.expr import Column
from ..ops.filter import Filter
from ..ops.node import Node
from ..ops.project import Project
from ..ops.sample import Sample
from ..ops.scan import Scan
from ..ops.union import Union
from .plan import Operator, ScanLeaf, all_leaves
from .sealing import Sealed

#: kinds of sources that are parsed on every read
PARSED = frozenset({"csv", "json", "text"})


def is_rereadable(node: Node) -> bool:
    """Return whether a shared node is read again by each consumer: an unfiltered scan of a binary format."""
    if isinstance(node, Project) and all(isinstance(expr, Column) for _, expr in node.exprs):
        node = node.input
    return isinstance(node, Scan) and node.predicate is None and node.source.kind not in PARSED


def is_scanned(node: Node, operator: Operator, kept: Collection[int] = ()) -> bool:
    """Return whether a node's rows come straight from binary files, through nothing but expressions.

    Args:
        node: the logical node.
        operator: what it was lowered to.
        kept: stages whose blocks are read like files, as they are persisted.
    """
    leaves = all_leaves(operator)
    if not all(isinstance(leaf, ScanLeaf) or leaf.stage in kept for leaf in leaves):
        return False
    stack = [node]
    while stack:
        node = stack.pop()
        if not isinstance(node, Scan | Filter | Project | Sample | Union | Sealed):
            return False
        if isinstance(node, Scan) and node.source.kind in PARSED:
            return False
        stack.extend(node.inputs)
    return True
