"""Failures: what is held against a task whose attempt failed, when it is tried again, and when the run gives up."""

from __future__ import annotations

import numpy as np

from ...errors import RunFailedError
from ..failure_text import partitions_text, poisonous, with_cause
from ..placement import Attempt, TaskRun
from ..scheduler_events import FailureKind, TaskFailed
from .lost_blocks import mark_lost
from .run_state import RunState

#: workers that may die with a task, or attempts that the system may refuse, before the run gives up
MAX_DEATHS = 4
#: attempts of a task that may fail to read inputs
MAX_FETCH_FAILURES = 8


def task_failed(state: RunState, event: TaskFailed) -> None:
    """An attempt is over without a result: charge whom it may concern, and let the task wait again."""
    worker = state.placement.workers.get(event.worker)
    executing = [] if worker is None else worker.executing()
    attempt = state.ended(event.id, event.attempt)
    if event.lost and attempt is not None:
        mark_lost(state, event.lost, attempt)
    if attempt is None or attempt.stopped:
        return
    task, stage = attempt.task, state.stages[event.stage].stage
    where = f"{stage.label}: {partitions_text(task.partitions)}"
    state.record(["failed", event.stage, event.id, event.attempt, event.kind.value, str(event.error)[:500]])
    if event.kind is FailureKind.USER:
        state.fail(event.error)
    elif event.kind is FailureKind.LOST:
        if attempt in executing:
            _charge(state, task, event.worker, alone=len(executing) == 1)
    elif event.kind is FailureKind.FETCH:
        count_fetch_failure(state, task, event.error)
    elif event.kind is FailureKind.DISK:
        _disk_full(state, attempt, event.error)
    elif event.kind is FailureKind.OTHER:
        task.refusals += 1
        if task.refusals >= MAX_DEATHS:
            what = f"{type(event.error).__name__}: {event.error}"
            state.fail(
                with_cause(f"{where}: {MAX_DEATHS} attempts failed, the last with {what}", event.error)
            )
    requeue(state, task)


def count_fetch_failure(state: RunState, task: TaskRun, error: BaseException | None) -> None:
    """Inputs of a task could not be read; too often, and the run gives up."""
    task.fetch_failures += 1
    if task.fetch_failures >= MAX_FETCH_FAILURES:
        where = f"{state.stages[task.stage].stage.label}: {partitions_text(task.partitions)}"
        last = "" if error is None else f", the last: {error}"
        text = f"{where}: inputs could not be read in {MAX_FETCH_FAILURES} attempts{last}. "
        failure = RunFailedError(f"{text}Can the workers reach each other?")
        failure.__cause__ = error
        state.fail(failure)


def _disk_full(state: RunState, attempt: Attempt, error: BaseException) -> None:
    """Let other nodes have the work, until blocks of this one are released; fail if there is none."""
    worker = state.placement.workers.get(attempt.worker)
    if worker is not None and worker.node not in state.placement.full:
        state.placement.full.add(worker.node)
        loss = state.losses.begin("disk full", f"node {worker.node[:8]}", state.now)
        loss.tasks, loss.recovered = 1, state.now
    if state.placement.living_nodes() <= state.placement.full:
        state.fail(error)


def blame(state: RunState, executing: list[Attempt], address: str, node: str) -> None:
    """A worker died: a task that ran alone is charged; of several, all become suspects."""
    for attempt in executing:
        if not attempt.stopped:
            attempt.task.avoid.add(node)
            _charge(state, attempt.task, address, alone=len(executing) == 1)


def _charge(state: RunState, task: TaskRun, address: str, alone: bool) -> None:
    if not alone:
        task.company += 1
        return
    task.deaths += 1
    task.culprits.append(address)
    if task.deaths >= MAX_DEATHS:
        state.fail(poisonous(state.stages[task.stage].stage, task.partitions, task.culprits))


def requeue(state: RunState, task: TaskRun) -> None:
    """Let a task wait for a worker again, unless another attempt at it is under way."""
    if state.error is not None or task.attempts or task.id not in state.tasks:
        return
    stage = state.stages[task.stage]
    stage.running[task.partitions] = False
    del state.tasks[task.id]
    state.recovery.tasks_retried += 1
    state.lossy = True  # what it reads may have been lost while it ran
    parts = task.partitions[~stage.done[task.partitions]]
    if not len(parts):
        return
    stage.queued[parts] = True
    pieces = np.split(parts, len(parts)) if task.suspect else [parts]
    for piece in pieces:
        again = TaskRun(
            task.stage, state.new_id() if len(pieces) > 1 else task.id, piece,
            deaths=task.deaths, company=task.company, fetch_failures=task.fetch_failures,
            refusals=task.refusals, culprits=list(task.culprits), avoid=set(task.avoid), long=task.long,
            device=task.device,
        )  # fmt: skip
        state.parked.append(again)
