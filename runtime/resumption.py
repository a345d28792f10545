"""Resumption: what a driver leaves in the journal for the next one, and how that one begins."""

from __future__ import annotations

import pickle
from dataclasses import replace

from ..errors import SerializationError
from ..lineage.graph import LineageGraph
from ..lineage.restored import Fate, Restored, Result
from ..ops.pickling import dumps
from ..ops.sink import StagedFile
from ..planner.plan import PhysicalPlan, Stage
from .scheduler_events import Restore
from .tables import parse_table
from .task import PartitionResult

#: name of the plan in the journal
PLAN = "plan.bin"
#: a plan with more bytes of tables in it than this isn't kept, so its run can't be resumed
MOST_BYTES = 16 << 20


def plan_record(plan: PhysicalPlan, lineage: LineageGraph) -> list[object]:
    """Describe a plan's stages and their dependencies, for the journal."""
    stages = [
        [
            stage.id,
            stage.key,
            stage.label,
            stage.partitions,
            [[edge.source, edge.dependency.value, edge.start, edge.stop] for edge in edges],
            stage.sink is not None,
        ]
        for stage, edges in zip(plan.stages, lineage.edges)
    ]
    return ["plan", stages, dict(plan.outputs)]


def pack_plan(plan: PhysicalPlan) -> bytes | None:
    """Pickle a plan, user functions included; None if it holds too large tables.

    Raises:
        SerializationError: something in it can't be pickled.
    """
    try:
        data = dumps(replace(plan, trace=()))
    except Exception as error:
        raise SerializationError(
            f"the pipeline can't be sent to the workers: {error}. "
            "Open files, locks and connections don't travel: make them inside the function."
        ) from error
    return data if len(data) <= MOST_BYTES else None


def unpack_plan(data: bytes) -> PhysicalPlan:
    """Read what `pack_plan` made.

    Raises:
        SerializationError: it doesn't load here.
    """
    try:
        return pickle.loads(data)
    except Exception as error:
        raise SerializationError(
            f"the run's plan doesn't load here: {type(error).__name__}: {error}. Resume with the versions of "
            "Python and packages that it was started with, and with the modules that its functions import."
        ) from error


def restore(plan: PhysicalPlan, run: str, past: Restored | None) -> Restore:
    """Say how a run begins of which something is there already.

    Args:
        plan: of the run.
        run: its id.
        past: what the journal of its earlier drivers says; None if there were none.

    Returns:
        The event for the scheduler. Of a sink's partitions those count whose staged files are there, or
        whose commit has begun: a commit can be repeated, whatever it has moved already.
    """
    fingerprints, finished, staged = {}, {}, []
    if past is None:
        return Restore({}, {}, (), {})
    for stage, results in zip(plan.stages, past.results):
        begun = any(
            name in past.committing | past.committed for name, id in plan.outputs.items() if id == stage.id
        )
        for partition, result in enumerate(results):
            if result is None:
                continue
            fingerprints[stage.id, partition] = result.fingerprint
            if result.fate in (Fate.HELD, Fate.LOST):
                finished[stage.id, partition] = result.bytes
            if result.fate is not Fate.HELD:
                continue
            if result.files is not None:
                files = tuple(StagedFile(*file) for file in result.files)
                if begun or _are_staged(stage, run, files):
                    staged.append((stage.id, _sink_result(partition, result, files)))
    boundaries = {stage: parse_table(text) for stage, text in past.boundaries.items()}
    return Restore(fingerprints, finished, tuple(staged), boundaries)


def _are_staged(stage: Stage, run: str, files: tuple[StagedFile, ...]) -> bool:
    return stage.sink is not None and all(stage.sink.is_staged(run, file) for file in files)


def _sink_result(partition: int, result: Result, files: tuple[StagedFile, ...]) -> PartitionResult:
    return PartitionResult(partition, result.rows, result.fingerprint, None, files)
