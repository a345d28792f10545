"""Snapshot: where a run stands at one moment, for progress displays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .scheduler import Scheduler
from .stage_run import StageRun, StageState


@dataclass(frozen=True)
class StageSnapshot:
    """How far one stage is.

    Attributes:
        id, label: of the stage.
        state: "waiting", "running" or "finished".
        done, total: partitions.
        running: tasks that workers have.
        rows, bytes: of the finished partitions; bytes as they lie on disk.
        metrics: of the last step, if the stage trains.
    """

    id: int
    label: str
    state: str
    done: int
    total: int
    running: int
    rows: int
    bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """How far a run is.

    Attributes:
        run: the run's id.
        elapsed: seconds since its start.
        workers, nodes: how many live.
        workers_lost: how many died.
        tasks_retried: attempts repeated after failures.
        stages: by id.
    """

    run: str
    elapsed: float
    workers: int
    nodes: int
    workers_lost: int
    tasks_retried: int
    stages: tuple[StageSnapshot, ...]


def snapshot_of(scheduler: Scheduler, elapsed: float) -> Snapshot:
    """Describe where a run stands.

    Args:
        scheduler: the run.
        elapsed: seconds since its start.

    Returns:
        A record that doesn't change any more.
    """
    placement, recovery = scheduler.placement, scheduler.recovery
    tasks = [a.task.stage for worker in placement.workers.values() for a in worker.attempts.values()]
    return Snapshot(
        scheduler.run,
        elapsed,
        len(placement.workers),
        len(placement.nodes()),
        len(recovery.workers_lost),
        recovery.tasks_retried,
        tuple(_stage(run, tasks.count(run.stage.id)) for run in scheduler.stages),
    )


def _stage(run: StageRun, running: int) -> StageSnapshot:
    done = run.stage.partitions if run.state is StageState.FINISHED else int(np.count_nonzero(run.done))
    return StageSnapshot(
        run.stage.id, run.stage.label, run.state.value, done, run.stage.partitions, running,
        run.metrics.rows_out, run.metrics.bytes_out, run.step_metrics,
    )  # fmt: skip
