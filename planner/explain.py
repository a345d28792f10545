"""Explain: the logical, the optimized and the physical plan, and what the rules did, as text or as data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from ..ops.node import Node
from .plan import (
    BlockLeaf,
    BroadcastLeaf,
    PhysicalPlan,
    RuleEvent,
    ScanLeaf,
    ShuffleLeaf,
    Stage,
    Storage,
    Transfer,
    all_leaves,
)
from .rewrite import Roots, consumers
from .text import human_bytes, human_rows

#: how a leaf's dependency is called
DEPENDENCIES = {BlockLeaf: "narrow", ShuffleLeaf: "shuffle", BroadcastLeaf: "broadcast"}

#: deepest indentation of a plan text, so that a plan of thousands of operators stays readable
MAX_INDENT = 40


def explain_text(before: Roots, after: Roots, plan: PhysicalPlan) -> str:
    """Write what was asked for, what it was rewritten to, why, and how it will run.

    Args:
        before: the logical plan as declared.
        after: the logical plan as optimized.
        plan: the physical plan built from it.

    Returns:
        Four sections: logical plan, optimized plan, rules, physical plan.

    Example:
        >>> print(explain_text({}, {}, PhysicalPlan((), {})).splitlines()[0])
        == Logical plan ==
    """
    sections = {
        "Logical plan": logical_lines(before),
        "Optimized plan": logical_lines(after),
        "Rules": rule_lines(plan.trace),
        "Physical plan": physical_lines(plan),
    }
    return "\n\n".join("\n".join([f"== {name} ==", *lines]) for name, lines in sections.items()) + "\n"


def explain_dict(before: Roots, after: Roots, plan: PhysicalPlan) -> dict[str, Any]:
    """Return the same as nested dicts and lists that JSON can hold."""
    return {
        "logical": list(logical_lines(before)),
        "optimized": list(logical_lines(after)),
        "rules": [{"rule": e.rule, "fired": e.fired, "detail": e.detail} for e in plan.trace],
        "stages": [_stage_dict(stage) for stage in plan.stages],
        "outputs": dict(plan.outputs),
        "exchange_bytes": exchange_bytes(plan),
    }


def explain_json(before: Roots, after: Roots, plan: PhysicalPlan) -> str:
    """Return `explain_dict` as JSON text."""
    return json.dumps(explain_dict(before, after, plan), indent=2)


def logical_lines(roots: Roots) -> Iterator[str]:
    """Write a logical plan, output first, inputs indented below; a part read twice is written once.

    Args:
        roots: the plan.

    Yields:
        Lines. A shared part has a number, ``[1]``, where it is written and wherever else it is read.
    """
    counts = consumers(roots)
    numbers: dict[Node, int] = {}
    for name, root in roots.items():
        yield f"{name}:"
        stack = [(root, 1)]
        while stack:
            node, depth = stack.pop()
            again = node in numbers
            if counts[node] > 1:
                numbers.setdefault(node, len(numbers) + 1)
            mark = f"[{numbers[node]}] " if node in numbers else ""
            text = f"{type(node).__name__} {node.describe()}".rstrip()
            yield "  " * min(depth, MAX_INDENT) + mark + text + (" (see above)" if again else "")
            if not again:
                stack.extend((child, depth + 1) for child in reversed(node.inputs))


def rule_lines(trace: Iterable[RuleEvent]) -> Iterator[str]:
    """Write what the rules did: a plus for each that fired, a minus for each that refused."""
    lines = [f"{'+' if event.fired else '-'} {event.rule}: {event.detail}" for event in trace]
    yield from lines or ["no rule applied"]


def physical_lines(plan: PhysicalPlan) -> Iterator[str]:
    """Write each stage with its partitions, expected size, inputs and exchange."""
    for stage in plan.stages:
        names = [name for name, id in plan.outputs.items() if id == stage.id]
        output = f" -> output {', '.join(map(repr, names))}" if names else ""
        yield f"Stage {stage.id}: {stage.label}{output}"
        count = f"{stage.partitions:,} partition{'s' * (stage.partitions != 1)}"
        about = "" if stage.estimate.exact else "about "
        size = f"{about}{human_rows(stage.estimate.rows)}, {human_bytes(stage.estimate.bytes)}"
        yield f"    {count}, {size}"
        for line in _input_lines(stage):
            yield f"    {line}"
        if stage.exchange is not None:
            origin = stage.exchange.boundaries_from
            by = "" if origin is None else f", boundaries from stage {origin}"
            yield f"    exchange: {stage.exchange.partitioner.describe()}{by}"
        if stage.device != "cpu":
            yield f"    on {stage.device}: {_transfer_text(stage.transfer)}"
        if stage.sample:
            yield f"    sample: [{', '.join(str(key) for key in stage.sample)}]"
        if stage.sink is not None:
            yield f"    sink: {stage.sink.describe()}"
        if stage.storage is not None:
            yield f"    kept: {_storage_text(stage.storage)}"
    moved = sum(stage.exchange is not None for stage in plan.stages)
    yield f"Exchanges: {moved}, about {human_bytes(exchange_bytes(plan))} in all"
    if any(stage.device != "cpu" for stage in plan.stages):
        total = sum((stage.transfer for stage in plan.stages), Transfer())
        yield f"Between host and device: {_transfer_text(total)}"


def exchange_bytes(plan: PhysicalPlan) -> float:
    """Return how many bytes, expected, all exchanges and broadcasts move."""
    shuffled = sum(stage.estimate.bytes for stage in plan.stages if stage.exchange is not None)
    leaves = (leaf for stage in plan.stages for leaf in all_leaves(stage.operator))
    sent = {leaf.stage for leaf in leaves if isinstance(leaf, BroadcastLeaf)}
    return shuffled + sum(plan.stages[id].estimate.bytes for id in sorted(sent))


def _input_lines(stage: Stage) -> Iterator[str]:
    """Inputs grouped by what they are, so that a union of a thousand scans takes one line a kind."""
    scans = [leaf for leaf in all_leaves(stage.operator) if isinstance(leaf, ScanLeaf)]
    for leaf in scans[:8]:
        where = f" where {leaf.predicate}" if leaf.predicate is not None else ""
        limit = f" limit {leaf.limit}" if leaf.limit is not None else ""
        columns = f"{len(leaf.columns)} of {len(leaf.source.schema)} columns"
        yield f"reads {leaf.source.describe()}: {columns}{where}{limit}"
    if len(scans) > 8:
        yield f"reads {len(scans) - 8} more sources"
    for kind, ids in _reads(stage).items():
        yield f"{kind} from stage{'s' * (len(ids) > 1)} {', '.join(map(str, ids[:20]))}" + (
            f" and {len(ids) - 20} more" if len(ids) > 20 else ""
        )


def _reads(stage: Stage) -> dict[str, list[int]]:
    """Dependency to the ids of the stages read by it, in the order of the leaves."""
    found: dict[str, dict[int, None]] = {}
    for leaf in all_leaves(stage.operator):
        if not isinstance(leaf, ScanLeaf):
            found.setdefault(DEPENDENCIES[type(leaf)], {})[leaf.stage] = None
    return {kind: list(ids) for kind, ids in found.items()}


def _stage_dict(stage: Stage) -> dict[str, Any]:
    exchange = stage.exchange
    return {
        "id": stage.id,
        "key": stage.key,
        "label": stage.label,
        "partitions": stage.partitions,
        "rows": round(stage.estimate.rows),
        "bytes": round(stage.estimate.bytes),
        "exact": stage.estimate.exact,
        "columns": stage.schema.names,
        "sources": [
            leaf.source.describe() for leaf in all_leaves(stage.operator) if isinstance(leaf, ScanLeaf)
        ],
        "reads": _reads(stage),
        "exchange": None if exchange is None else exchange.partitioner.describe(),
        "boundaries_from": None if exchange is None else exchange.boundaries_from,
        "sink": None if stage.sink is None else stage.sink.describe(),
        "kept": None if stage.storage is None else asdict(stage.storage),
        "device": stage.device,
        "to_device_bytes": round(stage.transfer.to_device),
        "to_host_bytes": round(stage.transfer.to_host),
        "found_on_device_bytes": round(stage.transfer.found),
    }


def _storage_text(storage: Storage) -> str:
    return f"{storage.level}, {storage.replicas} replica{'s' * (storage.replicas != 1)}"


def _transfer_text(transfer: Transfer) -> str:
    found = f"; {human_bytes(transfer.found)} found there" if transfer.found else ""
    return f"about {human_bytes(transfer.to_device)} there, {human_bytes(transfer.to_host)} back{found}"
