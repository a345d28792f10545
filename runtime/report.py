"""RunReport: what a run did, for people and programs: outputs, stages, failures, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..lineage.fingerprint import content_digest
from ..ops.sink import visible
from .losses import Loss
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
        training: what happened to the gang of a train stage; see `training.job.TrainingLog`.
        to_device_bytes, to_host_bytes: crossed between host and GPU.
        device_bytes, peer_device_bytes: input that was found on the GPU that reads it, and on those of the node's other
            workers.
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
    training: Mapping[str, Any] | None = None
    to_device_bytes: int = 0
    to_host_bytes: int = 0
    device_bytes: int = 0
    peer_device_bytes: int = 0


@dataclass(frozen=True)
class RecoveryReport:
    """What failures cost.

    Attributes:
        workers_lost, nodes_lost, blocks_lost: how many.
        tasks_retried: attempts repeated because a worker died or an input was lost.
        partitions_rerun: finished partitions that were made again, by stage id.
        losses: each loss and what came of it, in the order in which they were noticed.
        minimum, rerun: finished partitions that had to be made again by the lineage graph, and that were.
        returned: of the minimum, those whose blocks came back before they were made again.
        rerun_seconds: of the tasks that made them.
        backups, backups_won: attempts started beside a slow one, and those of them that were first.
        backup_seconds_wasted: of attempts that lost against another one.
        task_seconds: of all tasks whose results counted.
        adopted: partitions whose results were found on a node and taken.
        clean_seconds: what the run would have taken without losses, estimated; see `clean_estimate`.
    """

    workers_lost: int = 0
    nodes_lost: int = 0
    blocks_lost: int = 0
    tasks_retried: int = 0
    partitions_rerun: Mapping[str, list[int]] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    minimum: int = 0
    rerun: int = 0
    returned: int = 0
    rerun_seconds: float = 0.0
    backups: int = 0
    backups_won: int = 0
    backup_seconds_wasted: float = 0.0
    task_seconds: float = 0.0
    adopted: int = 0
    clean_seconds: float = 0.0


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
    files = visible([file for result in results for file in result.files])
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
        run.stage.id, run.stage.label, run.stage.partitions, len(run.finished_tasks), run.attempts_launched,
        round(m.seconds, 6), round(wall_seconds, 6), m.rows_in, m.rows_out, m.bytes_in, m.bytes_out,
        m.local_bytes, m.remote_bytes, m.spilled_bytes, run.training, m.to_device_bytes, m.to_host_bytes,
        m.device_bytes, m.peer_device_bytes,
    )  # fmt: skip


def recovery_report(scheduler: Scheduler, seconds: float) -> RecoveryReport:
    """Describe what failures have cost a run that took so many seconds."""
    cost, losses = scheduler.recovery, scheduler.losses
    rerun: dict[str, list[int]] = {}
    for stage, partition in cost.partitions_rerun:
        rerun.setdefault(str(stage), []).append(partition)
    task_seconds = sum(stage.metrics.seconds for stage in scheduler.stages)
    return RecoveryReport(
        workers_lost=len(cost.workers_lost),
        nodes_lost=len(cost.nodes_lost),
        blocks_lost=cost.blocks_lost,
        tasks_retried=cost.tasks_retried,
        partitions_rerun={stage: np.unique(found).tolist() for stage, found in rerun.items()},
        losses=tuple(losses.all),
        minimum=sum(loss.minimum for loss in losses.all),
        rerun=sum(loss.rerun for loss in losses.all),
        returned=sum(loss.returned for loss in losses.all),
        rerun_seconds=round(sum(loss.rerun_seconds for loss in losses.all), 6),
        backups=losses.backups,
        backups_won=losses.backups_won,
        backup_seconds_wasted=round(losses.wasted_seconds, 6),
        task_seconds=round(task_seconds, 6),
        adopted=cost.adopted,
        clean_seconds=round(clean_estimate(scheduler, seconds), 6),
    )


def clean_estimate(scheduler: Scheduler, seconds: float) -> float:
    """Estimate how long a run would have taken without its losses.

    Without them, tasks would have been spared the work that was done again or in vain, at the parallelism
    that the run had on average. Time in which nothing ran for want of workers isn't taken out.

    Args:
        scheduler: the run.
        seconds: that it took.

    Returns:
        Seconds; 0 for a run that was resumed, as nobody knows how long it had gone on before.
    """
    if scheduler.epoch:
        return 0.0
    useful = sum(stage.metrics.seconds for stage in scheduler.stages)
    again = sum(loss.rerun_seconds for loss in scheduler.losses.all)
    vain = scheduler.losses.wasted_seconds + scheduler.losses.broken_seconds
    total = useful + vain
    return seconds if total <= 0 else seconds * max(0.0, useful - again) / total


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
    return RunReport(
        run=scheduler.run,
        pipeline=pipeline,
        state=state,
        seconds=round(seconds, 6),
        outputs={name: output_report(scheduler.stages[stage]) for name, stage in outputs.items()},
        stages=tuple(stage_report(run, wall_seconds.get(run.stage.id, 0.0)) for run in scheduler.stages),
        recovery=recovery_report(scheduler, seconds),
        versions=dict(versions or {}),
        journal_bytes=journal_bytes,
        error=None if error is None else f"{type(error).__name__}: {error}",
    )  # fmt: skip
