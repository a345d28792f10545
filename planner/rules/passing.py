"""Passing: which inputs of an operator a predicate on its output may be applied to instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from ...ops.aggregate import Aggregate
from ...ops.distinct import Distinct
from ...ops.expressions.analysis import substitute
from ...ops.expressions.expr import Column, Expr
from ...ops.join import Join
from ...ops.node import Node
from ...ops.project import Project
from ...ops.repartition import Repartition
from ...ops.union import Union
from .inlining import MAX_TERMS, inline, inlined_terms

#: why operators that let nothing pass do so
BARRIERS = {
    "Limit": "Limit counts rows before the filter",
    "TopK": "TopK counts rows before the filter",
    "Sample": "Sample draws by row position",
    "MapBatches": "MapBatches is a user function of whole batches",
    "Train": "Train gives a model, no rows",
    "Transform": "what Transform does to a column isn't known to the planner",
    "Sealed": "it is persisted, or a Sample draws from it by row position",
}


@dataclass(frozen=True)
class Verdict:
    """Where a predicate may go from above an operator.

    Attributes:
        inputs: position of an input to the predicate over that input's columns; together they
            replace the predicate. Empty if it must stay.
        inferred: further inputs that the predicate implies the same of.
        reason: why it must stay.
    """

    inputs: Mapping[int, Expr] = field(default_factory=dict)
    inferred: Mapping[int, Expr] = field(default_factory=dict)
    reason: str = ""


def passes(
    node: Node, expr: Expr, columns: frozenset[str], raises: bool, mapping: Mapping[str, Expr]
) -> Verdict:
    """Decide where a predicate on an operator's output may be applied.

    Args:
        node: the operator.
        expr: the predicate.
        columns: the columns it reads.
        raises: whether it may raise on rows it was not written for.
        mapping: for a Project, what each output column stands for.

    Returns:
        The verdict; the output of the operator is the same rows in the same order either way.
    """
    if isinstance(node, Project):
        return _through_project(node, expr, mapping)
    if isinstance(node, Union):
        return Verdict(dict.fromkeys(range(len(node.sources)), expr))
    if isinstance(node, Repartition):
        if node.kind == "hash" or node.count == 1:
            return Verdict({0: expr})
        return Verdict(reason=f"Repartition by {node.kind} would place rows otherwise")
    if raises and isinstance(node, Join | Distinct | Aggregate):
        return Verdict(reason=f"it may raise on rows that {type(node).__name__} drops")
    if isinstance(node, Distinct):
        others = columns - set(node.key_columns)
        return (
            Verdict(reason=f"Distinct doesn't keep rows apart by {_names(others)}")
            if others
            else Verdict({0: expr})
        )
    if isinstance(node, Aggregate):
        return _through_aggregate(node, expr, columns)
    if isinstance(node, Join):
        return _through_join(node, expr, columns)
    return Verdict(reason=BARRIERS.get(type(node).__name__, f"{type(node).__name__} lets no filter pass"))


def _through_project(node: Project, expr: Expr, mapping: Mapping[str, Expr]) -> Verdict:
    if inlined_terms(expr, mapping) > MAX_TERMS:
        return Verdict(reason=f"it would have more than {MAX_TERMS} terms below Project")
    return Verdict({0: inline(expr, mapping)})


def _through_aggregate(node: Aggregate, expr: Expr, columns: frozenset[str]) -> Verdict:
    if not node.keys:
        return Verdict(reason="a global Aggregate gives one row whatever it reads")
    if others := columns - set(node.keys):
        return Verdict(reason=f"{_names(others)} is computed by Aggregate")
    return Verdict({0: expr})


def _through_join(node: Join, expr: Expr, columns: frozenset[str]) -> Verdict:
    if columns <= set(node.left.schema.names):
        return Verdict({0: expr}, inferred=_on_right_keys(node, expr, columns))
    right = {output: Column(name) for name, output in node.right_columns}
    if not columns <= set(right):
        return Verdict(reason="it needs columns of both sides of Join")
    if node.how == "left":
        return Verdict(reason="a left Join keeps left rows without a match, whose right columns are null")
    return Verdict({1: substitute(expr, right)})


def _on_right_keys(node: Join, expr: Expr, columns: frozenset[str]) -> dict[int, Expr]:
    """What holds of left keys holds of the right keys they equal (floats apart: 0.0 equals -0.0)."""
    keys = dict(zip(node.left_on, node.right_on))
    if not columns or not columns <= set(keys):
        return {}
    if any(pa.types.is_floating(node.left.schema.field(name).type) for name in columns):
        return {}
    return {1: substitute(expr, {name: Column(keys[name]) for name in columns})}


def _names(columns: frozenset[str]) -> str:
    return ", ".join(sorted(columns))
