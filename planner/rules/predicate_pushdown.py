"""Predicate pushdown: rows are dropped as early as they can be, at best by the scan itself.

Each filter is split into its conjuncts, and each travels down on its own until an operator would
give other rows if it went further (Ullman, Principles of Database and Knowledge-Base Systems, 1989).
One pass from outputs to sources decides where each stops, one back builds the new plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ops.expressions.analysis import conjuncts, may_raise
from ...ops.expressions.expr import Expr
from ...ops.filter import Filter
from ...ops.node import Node
from ...ops.project import Project
from ...ops.scan import Scan
from ...ops.sort import Sort
from ..plan import RuleEvent
from ..rereading import is_rereadable
from ..rewrite import Roots, consumers, over, title, walk
from .inlining import definitions, is_column
from .passing import passes
from .predicates import all_of

NAME = "predicate_pushdown"


@dataclass(frozen=True, eq=False)
class Travelling:
    """A conjunct on its way down.

    Attributes:
        expr: over the columns where it is now.
        columns: the columns it needs there.
        written: as the user wrote it, for messages.
        passed: the operators it has left above, each name once, in order.
        raises: whether it may raise on rows it was not written for.
    """

    expr: Expr
    columns: frozenset[str]
    written: str
    passed: tuple[str, ...]
    raises: bool

    def below(self, node: Node, expr: Expr | None = None, position: int = 0) -> Travelling:
        """Return the conjunct as it is after passing an operator."""
        name = type(node).__name__
        passed = self.passed if name in self.passed else (*self.passed, name)
        if expr is not None and expr is not self.expr:
            raises = may_raise(expr, node.inputs[position].schema)
            return replace(self, expr=expr, columns=expr.columns(), passed=passed, raises=raises)
        return self if passed is self.passed else replace(self, passed=passed)


def predicate_pushdown(roots: Roots) -> tuple[Roots, list[RuleEvent]]:
    """Move the conjuncts of filters below the operators that let them pass, and into scans."""
    return _Pushdown(roots).run()


class _Pushdown:
    def __init__(self, roots: Roots):
        self.roots = roots
        self.counts = consumers(roots)
        self.events: list[RuleEvent] = []
        self.arriving: dict[Node, list[Travelling]] = {}  # conjuncts above a node that is read once
        self.staying: dict[Node, list[Travelling]] = {}  # conjuncts that stop right above a node
        self.edges: dict[tuple[Node, int], list[Travelling]] = {}  # those that stop above a shared input

    def run(self) -> tuple[Roots, list[RuleEvent]]:
        nodes = list(walk(self.roots))
        for node in reversed(nodes):
            self.descend(node, self.arriving.pop(node, []))
        done: dict[Node, Node] = {}
        for node in nodes:
            done[node] = self.rebuild(node, done)
        return {name: done[node] for name, node in self.roots.items()}, self.events

    def descend(self, node: Node, arriving: list[Travelling]) -> None:
        if isinstance(node, Filter):
            own = [_start(expr, node) for expr in conjuncts(node.predicate)]
            stuck = [item for item in arriving if item.raises]
            for item in stuck:
                self.stop(item, f"it may raise on rows that Filter {node.predicate} drops")
            self.staying[node] = stuck
            self.send(node, 0, own + [item.below(node) for item in arriving if not item.raises])
            return
        stay: list[Travelling] = []
        below: dict[int, list[Travelling]] = {}
        mapping = definitions(node) if isinstance(node, Project) and arriving else {}
        kept = frozenset(name for name, expr in mapping.items() if is_column(expr, name))
        for item in arriving:
            if isinstance(node, Sort) or (mapping and item.columns <= kept):
                below.setdefault(0, []).append(item.below(node))
                continue
            verdict = passes(node, item.expr, item.columns, item.raises, mapping)
            if not verdict.inputs:
                stay.append(item)
                self.stop(item, verdict.reason)
            for position, expr in verdict.inputs.items():
                below.setdefault(position, []).append(item.below(node, expr, position))
            for position, expr in verdict.inferred.items():
                if self.is_free(node.inputs[position]):
                    below.setdefault(position, []).append(item.below(node, expr, position))
        for position, items in below.items():
            self.send(node, position, items)
        self.staying[node] = stay

    def send(self, node: Node, position: int, items: list[Travelling]) -> None:
        """Hand conjuncts to an input, or leave them on the edge to an input that others read too."""
        child = node.inputs[position]
        if isinstance(child, Scan):
            self.into_scan(node, position, child, items)
        elif self.counts[child] == 1:
            self.arriving.setdefault(child, []).extend(items)
        else:
            self.edges[node, position] = items
            for item in items:
                self.stop(item, f"{title(child)} is shared by {self.counts[child]} consumers")

    def is_free(self, child: Node) -> bool:
        """Whether a conjunct may change an input without changing what others read."""
        return self.counts[child] == 1 or (isinstance(child, Scan) and is_rereadable(child))

    def into_scan(self, node: Node, position: int, scan: Scan, items: list[Travelling]) -> None:
        self.edges[node, position] = items
        for item in items:
            if reason := self.scan_refuses(scan, item):
                self.stop(item, reason)
                continue
            through = f"through {', '.join(item.passed)} " if item.passed else ""
            detail = f"{item.written}: {through}into Scan {scan.source.describe()}"
            self.events.append(RuleEvent(NAME, True, detail))

    def scan_refuses(self, scan: Scan, item: Travelling) -> str:
        """Return why a scan can't take a conjunct in; empty if it can."""
        if scan.limit is not None:
            return f"the scan is limited to {scan.limit} rows first"
        if not self.is_free(scan):
            return f"Scan {scan.source.describe()} is read once for {self.counts[scan]} consumers"
        if item.raises and scan.predicate is not None:
            return f"it may raise on rows that the scan drops by {scan.predicate}"
        return ""

    def stop(self, item: Travelling, reason: str) -> None:
        if item.passed:
            moved = f"{item.written}: moved below {', '.join(item.passed)}; no further, as {reason}"
            self.events.append(RuleEvent(NAME, True, moved))
        else:
            self.events.append(RuleEvent(NAME, False, f"{item.written}: stays, as {reason}"))

    def rebuild(self, node: Node, done: dict[Node, Node]) -> Node:
        inputs = []
        for position, child in enumerate(node.inputs):
            items = self.edges.get((node, position), [])
            inputs.append(self.filtered(child, done[child], items))
        return self.above(node, inputs[0] if isinstance(node, Filter) else over(node, inputs))

    def filtered(self, old: Node, new: Node, items: Sequence[Travelling]) -> Node:
        """Return an input with conjuncts applied: in the scan where it takes them, else by a filter."""
        outside = items
        if isinstance(old, Scan):
            assert isinstance(new, Scan)
            outside = [item for item in items if self.scan_refuses(old, item)]
            inside = _unique([item for item in items if not self.scan_refuses(old, item)])
            if inside:
                own = [] if new.predicate is None else conjuncts(new.predicate)
                new = replace(new, predicate=all_of([*own, *inside]))
        return Filter(new, all_of(_unique(outside))) if outside else new

    def above(self, old: Node, new: Node) -> Node:
        items = self.staying.get(old)
        return Filter(new, all_of(_unique(items))) if items else new


def _start(expr: Expr, node: Filter) -> Travelling:
    return Travelling(expr, expr.columns(), str(expr), (), may_raise(expr, node.input.schema))


def _unique(items: Sequence[Travelling]) -> list[Expr]:
    return list({item.expr.token: item.expr for item in items}.values())
