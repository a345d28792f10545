"""Backups: which slow attempts an idle worker tries as well, and how slow each worker is."""

from __future__ import annotations

from ..placement import Attempt, TaskRun
from ..stage_run import StageRun, StageState
from ..stragglers import RunningAttempt, choose_backup, recent_rate, unit_seconds
from .launching import launch
from .run_state import RunState

#: tasks shorter than this, in seconds, tell nothing about a worker's pace
LEAST_TIMED = 0.05


def back_up(state: RunState) -> None:
    """Let idle threads try what others are slow with."""
    for stage in state.stages:
        if stage.state is not StageState.RUNNING or not stage.finished_tasks:
            continue
        unit = unit_seconds(stage.finished_tasks, stage.tasks_cut)
        hopeless: set[int] = set()
        while unit is not None and (idle := state.placement.idle()):
            running = [
                a
                for a in state.attempts.values()
                if a.task.id not in hopeless and _may_be_backed_up(state, a, stage)
            ]
            views = [_view(state, attempt, unit) for attempt in running]
            unproven = stage.backups - stage.backups_won
            chosen = choose_backup(views, unproven, *_backup_seconds(state, unit))
            if chosen is None:
                break
            slow, view = running[chosen], views[chosen]
            _find_slow(state, slow, view)
            if not _inputs_alive(state, slow.task):  # it has read them
                hopeless.add(slow.task.id)
                continue
            others = [w for w in idle if w.address != slow.worker and w.has(slow.task.device)]
            if not others:  # a task of another device may find one
                hopeless.add(slow.task.id)
                continue
            stage.backups += 1
            state.losses.backups += 1
            launch(state, slow.task, others[0], backup=True)


def _may_be_backed_up(state: RunState, attempt: Attempt, stage: StageRun) -> bool:
    task = attempt.task
    alone = len(task.attempts) == 1 and not task.suspect
    return task.stage == stage.stage.id and alone and not attempt.stopped and not attempt.lacks


def _inputs_alive(state: RunState, task: TaskRun) -> bool:
    chosen = state.lineage.select(task.stage, task.partitions.tolist())
    parents = state.lineage.parents(chosen, lambda stage: state.stages[stage].filled)
    return not any((mask & ~stage.alive).any() for mask, stage in zip(parents, state.stages))


def _view(state: RunState, attempt: Attempt, unit: float) -> RunningAttempt:
    worker = state.placement.workers[attempt.worker]
    before = []
    for other in worker.attempts.values():
        if other is attempt:
            break
        before.append(other)
    ahead = (
        sum(other.task.seconds for other in before) / worker.threads if worker.threads <= len(before) else 0.0
    )
    fresh = unit * attempt.task.weight
    rate = recent_rate(attempt.samples, state.now, fresh)
    return RunningAttempt(state.now - attempt.started, ahead, fresh, attempt.share, rate)


def _backup_seconds(state: RunState, unit: float) -> tuple[float, float]:
    """What backups in vain have cost, with those that run and may be, and what all tasks have: in seconds."""
    backups = [a for a in state.attempts.values() if a.backup and not a.stopped]
    spent = state.losses.lost_backup_seconds + sum(unit * a.task.weight for a in backups)
    running = sum(state.now - a.started for a in state.attempts.values())
    return spent, running + sum(stage.metrics.seconds for stage in state.stages)


def _find_slow(state: RunState, attempt: Attempt, view: RunningAttempt) -> None:
    worker = state.placement.workers[attempt.worker]
    took = (view.elapsed - view.ahead) / max(attempt.share, 0.02) if attempt.share else view.left
    worker.pace = max(worker.pace, took / max(view.fresh, 1e-3))


def note_pace(state: RunState, attempt: Attempt, seconds: float) -> None:
    worker = state.placement.workers.get(attempt.worker)
    stage = state.stages[attempt.task.stage]
    unit = unit_seconds(stage.finished_tasks, stage.tasks_cut)
    if worker is not None and unit is not None and seconds > LEAST_TIMED:
        observed = seconds / max(unit * attempt.task.weight, LEAST_TIMED)
        worker.pace = max(1.0, 0.3 * worker.pace + 0.7 * observed)
