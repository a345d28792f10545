"""RunReport: what a run did, for people and programs: outputs, stages, failures, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..lineage.fingerprint import content_digest
from .scheduler import Scheduler
from .stage_run import StageRun


@dataclass(frozen=True)
class OutputReport:
    """What an output holds.

    Attributes:
        rows: how many.
        bytes: of its blocks or files.
        digest: of its content, independent of partitions and chunks; see `lineage.fingerprint`.
        partitions: how many.
        files: how many were written; 0 if it isn't a sink.
    """

    rows: int
    bytes: int
    digest: str
    partitions: int
    files: int = 0


@dataclass(frozen=True)
class StageReport:
    """What a stage did; sums over the tasks whose results counted.

    Attributes:
        id, label: of the stage.
        partitions, tasks: how many; a task carries one partition or several.
        attempts: tasks launched, failed and repeated ones included.
        seconds: of tasks, added up.
        wall_seconds: from the first launch to the end of the stage.
        rows_in, rows_out, bytes_in, bytes_out: of Arrow data.
        local_bytes, remote_bytes: input read on its node, and fetched from others.
        spilled_bytes: pushed to disk for lack of memory.
    """

    id: int
    label: str
    partitions: int
    tasks: int
    attempts: int
    seconds: float
    wall_seconds: float
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    local_bytes: int
    remote_bytes: int
    spilled_bytes: int


@dataclass(frozen=True)
class RecoveryReport:
    """What failures cost.

    Attributes:
        workers_lost, nodes_lost, blocks_lost: how many.
        tasks_retried: attempts repeated because a worker died or an input was lost.
        partitions_rerun: finished partitions that were made again, by stage id.
    """

    workers_lost: int = 0
    nodes_lost: int = 0
    blocks_lost: int = 0
    tasks_retried: int = 0
    partitions_rerun: Mapping[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        run: the run's id.
        pipeline: its name.
        state: "finished", "stopped", "failed" or "interrupted".
        seconds: wall time.
        outputs: by name; empty unless finished.
        stages: by id.
        recovery: what failures cost.
        versions: of Python and packages.
        journal_bytes: size of the journal.
        error: why it did not finish.
    """

    run: str
    pipeline: str
    state: str
    seconds: float
    outputs: Mapping[str, OutputReport]
    stages: tuple[StageReport, ...]
    recovery: RecoveryReport
    versions: Mapping[str, str]
    journal_bytes: int
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as nested dicts and lists of plain values."""
        return json.loads(json.dumps(asdict(self)))

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON text."""
        return json.dumps(asdict(self), indent=indent)


def output_report(run: StageRun) -> OutputReport:
    """Describe a finished output."""
    results = [result for result in run.results if result is not None]
    files = [file for result in results for file in result.files]
    blocks = [result.block for result in results if result.block is not None]
    return OutputReport(
        rows=sum(result.rows for result in results),
        bytes=sum(file.bytes for file in files) + sum(block.bytes for block in blocks),
        digest=content_digest((result.fingerprint for result in results), run.stage.schema),
        partitions=run.stage.partitions,
        files=len(files),
    )


def stage_report(run: StageRun, wall_seconds: float) -> StageReport:
    """Describe what a stage did so far."""
    m = run.metrics
    return StageReport(
        run.stage.id, run.stage.label, run.stage.partitions, run.tasks_finished, run.attempts_launched,
        round(m.seconds, 6), round(wall_seconds, 6), m.rows_in, m.rows_out, m.bytes_in, m.bytes_out,
        m.local_bytes, m.remote_bytes, m.spilled_bytes,
    )  # fmt: skip


def build_report(
    scheduler: Scheduler,
    state: str,
    seconds: float,
    wall_seconds: Mapping[int, float],
    pipeline: str = "",
    versions: Mapping[str, str] | None = None,
    journal_bytes: int = 0,
    error: BaseException | None = None,
) -> RunReport:
    """Describe a run.

    Args:
        scheduler: the run.
        state: how it ended.
        seconds: wall time of the run.
        wall_seconds: wall time of each stage, by id.
        pipeline: its name.
        versions: of Python and packages.
        journal_bytes: size of the journal.
        error: why it did not finish.

    Returns:
        The report; its outputs are empty unless the run finished.
    """
    outputs = scheduler.plan.outputs if state == "finished" else {}
    cost = scheduler.recovery
    rerun: dict[str, list[int]] = {}
    for stage, partition in cost.partitions_rerun:
        rerun.setdefault(str(stage), []).append(partition)
    return RunReport(
        run=scheduler.run,
        pipeline=pipeline,
        state=state,
        seconds=round(seconds, 6),
        outputs={name: output_report(scheduler.stages[stage]) for name, stage in outputs.items()},
        stages=tuple(stage_report(run, wall_seconds.get(run.stage.id, 0.0)) for run in scheduler.stages),
        recovery=RecoveryReport(
            len(cost.workers_lost), len(cost.nodes_lost), cost.blocks_lost, cost.tasks_retried,
            {stage: np.unique(partitions).tolist() for stage, partitions in rerun.items()},
        ),
        versions=dict(versions or {}),
        journal_bytes=journal_bytes,
        error=None if error is None else f"{type(error).__name__}: {error}",
    )  # fmt: skip
