"""The specification of legal plans, executable: what must hold of a logical and of a physical plan.

Every check raises PlanError with the offending node or stage: a defect of the planner, not of the user.
"""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from ..errors import PlanError
from ..ops.node import Node
from ..ops.partitioner import RangePartitioner
from ..ops.sample import Sample
from ..ops.scan import Scan
from ..ops.write import Write
from .plan import (
    BlockLeaf,
    BroadcastLeaf,
    Operator,
    PhysicalPlan,
    ScanLeaf,
    ShuffleLeaf,
    Stage,
    Step,
    UnionStep,
    all_leaves,
)
from .rewrite import Roots, title, walk
from .sealing import Sealed


def check_rewrite(batch: str, before: Roots, after: Roots) -> None:
    """Check that a batch of rules gave a legal plan with the outputs, schemas and samples it had."""
    check_schemas(before, after, f"after {batch!r}")
    check_samples(before, after, f"after {batch!r}")
    check(after)


def check_schemas(before: Roots, after: Roots, where: str = "after optimizing") -> None:
    """Check that the outputs have the names and schemas they had."""
    if list(before) != list(after):
        raise PlanError(f"{where}: the outputs are {list(after)}, not {list(before)}")
    for name, node in before.items():
        if after[name].schema != node.schema:
            raise PlanError(
                f"{where}: output {name!r} has the schema\n{after[name].schema}\nin place of\n{node.schema}"
            )


def check_samples(before: Roots, after: Roots, where: str) -> None:
    """Check that no sample draws other numbers than declared."""
    missing = _draws(after) - _draws(before)
    if missing:
        raise PlanError(f"{where}: the samples {sorted(missing)} were not declared")


def check(roots: Roots) -> None:
    """Check that a logical plan is legal: every node derives its schema again, and writes are outputs."""
    outputs = set(roots.values())
    for node in walk(roots):
        if node.derive_schema() != node.schema:
            raise PlanError(f"{title(node)} has another schema than its inputs give")
        if len(set(node.schema.names)) < len(node.schema):
            raise PlanError(f"{title(node)} gives a column twice: {node.schema.names}")
        if isinstance(node, Write) and node not in outputs:
            raise PlanError(f"{title(node)} is read by another node; a Write is an output only")
        if isinstance(node, Scan):
            _check_scan(node)


def check_physical(plan: PhysicalPlan) -> None:
    """Check that a physical plan can run: stages in order, leaves that fit what they read."""
    for position, stage in enumerate(plan.stages):
        if stage.id != position:
            raise PlanError(f"stage {stage.id} stands at position {position}")
        if stage.partitions < 1:
            raise PlanError(f"stage {stage.id} has no partitions")
        if any(parent >= stage.id for parent in stage.parents):
            raise PlanError(f"stage {stage.id} reads {stage.parents}, which don't all come before it")
        slots = Counter(leaf.slot for leaf in all_leaves(stage.operator))
        if slots and max(slots.values()) > 1:
            raise PlanError(f"stage {stage.id} uses a slot for two leaves")
        _check_operator(plan, stage, stage.operator, stage.partitions)
        _check_exchange(plan, stage)
    for name, id in plan.outputs.items():
        if plan.stages[id].exchange is not None:
            raise PlanError(f"output {name!r} is cut into segments")


def _draws(roots: Roots) -> set[tuple[str, int, float, float]]:
    return {(n.stream, n.seed, n.low, n.high) for n in walk(_opened(roots)) if isinstance(n, Sample)}


def _opened(roots: Roots) -> dict[str, Node]:
    """Add the contents of sealed leaves as further roots."""
    found: dict[str, Node] = dict(roots)
    todo = list(roots.values())
    while todo:
        for node in walk({"": todo.pop()}):
            if isinstance(node, Sealed) and node.key not in found:
                found[node.key] = node.content
                todo.append(node.content)
    return found


def _check_scan(scan: Scan) -> None:
    if scan.columns is not None and not scan.columns and len(scan.source.schema):
        raise PlanError(f"{title(scan)} reads no column, and would lose the number of rows")
    if scan.limit is not None and scan.limit < 0:
        raise PlanError(f"{title(scan)} has a negative limit")
    if scan.predicate is not None and not pa.types.is_boolean(scan.predicate.infer(scan.source.schema)):
        raise PlanError(f"{title(scan)} has a predicate that is no boolean")


def _check_operator(plan: PhysicalPlan, stage: Stage, operator: Operator, partitions: int) -> None:
    """Check the partition counts of a tree against what its leaves read."""
    if isinstance(operator, Step):
        for child in operator.inputs:
            _check_operator(plan, stage, child, partitions)
        return
    if isinstance(operator, UnionStep):
        if sum(count for _, count in operator.branches) != partitions:
            raise PlanError(
                f"stage {stage.id}: the branches of a union don't add up to {partitions} partitions"
            )
        for branch, count in operator.branches:
            _check_operator(plan, stage, branch, count)
        return
    if isinstance(operator, ScanLeaf):
        if len(stage.splits[operator.slot]) != partitions:
            raise PlanError(
                f"stage {stage.id}: {len(stage.splits[operator.slot])} splits, {partitions} partitions"
            )
        return
    source = plan.stages[operator.stage]
    if source.schema != operator.schema:
        raise PlanError(f"stage {stage.id} expects another schema than stage {source.id} leaves")
    if source.sink is not None:
        raise PlanError(f"stage {stage.id} reads stage {source.id}, which writes to a sink")
    if isinstance(operator, BlockLeaf) and (source.exchange is not None or source.partitions != partitions):
        raise PlanError(f"stage {stage.id} reads stage {source.id} narrowly, and their partitions don't fit")
    if isinstance(operator, BroadcastLeaf) and source.exchange is not None:
        raise PlanError(f"stage {stage.id} reads all of stage {source.id}, which is cut into segments")
    if isinstance(operator, ShuffleLeaf) and (source.exchange is None or source.exchange.count != partitions):
        raise PlanError(
            f"stage {stage.id} reads {partitions} segments of stage {source.id}, which has others"
        )


def _check_exchange(plan: PhysicalPlan, stage: Stage) -> None:
    if stage.exchange is None:
        return
    if stage.sink is not None:
        raise PlanError(f"stage {stage.id} has a sink and an exchange")
    partitioner = stage.exchange.partitioner
    if isinstance(partitioner, RangePartitioner):
        origin = stage.exchange.boundaries_from
        if origin is None or plan.stages[origin].sample != partitioner.keys:
            raise PlanError(f"stage {stage.id} has a range exchange without a sample of its keys")
