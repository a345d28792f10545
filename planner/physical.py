"""The physical plan: logical nodes, bottom up, become fragments, and fragments stages.

Stages are cut where rows have to move, and where several consumers read the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

from ..errors import ParameterError
from ..ops.node import Node
from ..ops.persist import Persist
from ..ops.write import Write
from .lowering import Lowering
from .options import PlanOptions
from .persisting import seal_persisted
from .plan import PhysicalPlan, RuleEvent, Storage
from .rereading import is_rereadable
from .rewrite import consumers, intern, walk
from .sealing import Sealed
from .stages import Fragment, StageBuilder


def build_plan(
    roots: Mapping[str, Node], options: PlanOptions, trace: Sequence[RuleEvent] = ()
) -> PhysicalPlan:
    """Build the stages of a logical plan.

    Args:
        roots: output name to node, optimized or not.
        options: sizes that decide partition counts and broadcasts.
        trace: what the optimizer did; physical decisions are added behind it.

    Returns:
        Stages in an order in which each comes after those it reads. Every stage has at least one
        partition. The outputs' stages have no exchange; equal outputs share a stage.

    Raises:
        PlanError: a node that can't be run.
        ParameterError: two outputs are written to one place.

    Example:
        >>> build_plan({}, PlanOptions()).stages
        ()
    """
    roots = intern(roots)
    _check_sinks(roots)
    builder = StageBuilder()
    low = Lowering(options, builder)
    outputs = _Planner(seal_persisted(roots, partial(_plan_alone, low)), low).cut()
    plan = PhysicalPlan(tuple(builder.stages), outputs, (*trace, *builder.events))
    if options.device == "cpu":
        return plan
    from .devices import place_on_devices  # what only those need who have a GPU

    return place_on_devices(plan, options)


def _check_sinks(roots: Mapping[str, Node]) -> None:
    writes = {node: name for name, node in roots.items() if isinstance(node, Write)}
    for (one, name), (other, second) in combinations(writes.items(), 2):
        if one.sink.overlaps(other.sink):
            raise ParameterError(
                f"outputs {name!r} and {second!r} are written to one place ({one.sink.describe()}, "
                f"{other.sink.describe()}). Name folders apart, or union the datasets."
            )


def _plan_alone(low: Lowering, node: Persist) -> Sealed:
    """Make the stages of what is persisted as if it were the whole plan."""
    planner, leaf = _Planner({"": node.input}, low), Sealed(node)
    planner.cut()
    low.persisted[leaf] = low.builder.keep(planner.fragments[node.input], Storage(node.level, node.replicas))
    return leaf


class _Planner:
    def __init__(self, roots: Mapping[str, Node], low: Lowering):
        self.roots = roots
        self.builder, self.low = low.builder, low
        self.counts = consumers(roots)
        self.fragments: dict[Node, Fragment] = {}

    def cut(self) -> dict[str, int]:
        """Make the stages; return those of the outputs."""
        outputs = set(self.roots.values())
        ids: dict[Node, int] = {}
        for node in walk(self.roots):
            if isinstance(node, Write):
                ids[node] = self.write(node)
                continue
            if is_rereadable(node) and node not in outputs:
                continue  # lowered anew for each consumer
            fragment = self.low.lower(node, [self.read(child) for child in node.inputs])
            if node in outputs:
                ids[node] = self.builder.cut(fragment)
            self.fragments[node] = self.builder.blocks(fragment) if self.is_shared(node) else fragment
        return {name: ids[node] for name, node in self.roots.items()}

    def is_shared(self, node: Node) -> bool:
        return self.counts[node] > 1 and not is_rereadable(node)

    def read(self, node: Node) -> Fragment:
        """Return a fragment of a node for one more consumer."""
        if is_rereadable(node):
            return self.low.lower(node, [self.read(child) for child in node.inputs])
        fragment = self.fragments[node]
        return self.builder.blocks(fragment) if self.is_shared(node) else fragment

    def write(self, node: Write) -> int:
        """End a stage in a sink; a sink of one file gets all rows in one partition."""
        below = self.read(node.input)
        if node.sink.single_file:
            below = self.builder.gather(below)
        return self.builder.write(below, node)
