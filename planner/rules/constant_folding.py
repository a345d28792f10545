"""Constant folding: what an expression computes from literals alone is computed once, in the plan."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from ...ops.expressions.analysis import fold_constants
from ...ops.expressions.expr import Expr, Literal
from ...ops.filter import Filter
from ...ops.node import Node
from ...ops.project import Project
from ...ops.scan import Scan
from ..plan import RuleEvent
from ..rewrite import Roots, rewrite

NAME = "constant_folding"


def constant_folding(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Fold constants in filters, projections and scans; drop a filter that is always true."""
    events: list[RuleEvent] = []

    def fold(expr: Expr, schema: pa.Schema) -> Expr:
        folded = fold_constants(expr, schema)
        if folded.token == expr.token or folded.infer(schema) != expr.infer(schema):
            return expr
        events.append(RuleEvent(NAME, True, f"{expr} is {folded}"))
        return folded

    def step(node: Node, _: Node) -> Node:
        if isinstance(node, Filter):
            predicate = fold(node.predicate, node.input.schema)
            if isinstance(predicate, Literal) and predicate.scalar.as_py() is True:
                events.append(
                    RuleEvent(NAME, True, f"Filter {node.predicate} keeps every row and is dropped")
                )
                return node.input
            return node if predicate is node.predicate else Filter(node.input, predicate)
        if isinstance(node, Project):
            exprs = tuple((name, fold(expr, node.input.schema)) for name, expr in node.exprs)
            changed = any(new is not old for (_, new), (_, old) in zip(exprs, node.exprs))
            return Project(node.input, exprs) if changed else node
        if isinstance(node, Scan) and node.predicate is not None:
            predicate = fold(node.predicate, node.source.schema)
            return node if predicate is node.predicate else replace(node, predicate=predicate)
        return node

    return rewrite(roots, step), events
