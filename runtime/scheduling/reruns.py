"""Reruns: which finished partitions have to be made again, and which no longer."""

from __future__ import annotations

import numpy as np

from ...lineage.recovery import Recovery, plan_recovery
from ..stage_run import StageState
from .run_state import RunState


def recover(state: RunState) -> None:
    """Make pending again what is lost and still to be read, back to where inputs survive.

    Partitions that run now need nothing more: they finish, or come back naming what they lack.
    """
    state.lossy = False
    waiting = [a for a in state.attempts.values() if a.lacks and not a.stopped]
    needed = [~stage.taken & stage.is_output for stage in state.stages]
    for stage_id, partition in (part for attempt in waiting for part in attempt.lacks):
        needed[stage_id][partition] = True
    under_way = state.reruns_under_way()
    unfinished = [~(s.done | s.running | again) for s, again in zip(state.stages, under_way)]
    _stop_useless(state, needed, unfinished)
    plan = _plan(state, needed, unfinished)
    while _need_samples(state, needed, [a | b for a, b in zip(plan.rerun, unfinished)]):
        plan = _plan(state, needed, unfinished)
    state.give_up([again & ~rerun for again, rerun in zip(under_way, plan.rerun)])
    for stage, rerun, again in zip(state.stages, plan.rerun, under_way):
        partitions = np.flatnonzero(rerun & ~again)
        if not len(partitions):
            continue
        stage_id = stage.stage.id
        stage.done[partitions] = False
        stage.state = StageState.RUNNING
        state.announced = False
        state.losses.need(((stage_id, p), stage.size(p)) for p in partitions.tolist())
        state.recovery.partitions_rerun.extend((stage_id, p) for p in partitions.tolist())
        state.record(["rerun", stage_id, partitions.tolist()])
    state.parked.extend(state.placement.drain())


def _plan(
    state: RunState,
    needed: list[np.ndarray],
    unfinished: list[np.ndarray],
    running: list[np.ndarray] | None = None,
) -> Recovery:
    running = running or [stage.running for stage in state.stages]
    return plan_recovery(
        state.lineage,
        present=[stage.alive | under_way for stage, under_way in zip(state.stages, running)],
        needed=needed,
        unfinished=unfinished,
        segments=lambda stage: state.stages[stage].filled,
    )


def _stop_useless(state: RunState, needed: list[np.ndarray], unfinished: list[np.ndarray]) -> None:
    """Cancel reruns that nobody would ask for now."""
    again = state.reruns_under_way(running=True)
    if not any(mask.any() for mask in again):
        return
    others = [stage.running & ~mask for stage, mask in zip(state.stages, again)]
    useless = [a & ~b for a, b in zip(again, _plan(state, needed, unfinished, others).rerun)]
    for attempt in list(state.attempts.values()):
        task, stage = attempt.task, state.stages[attempt.task.stage]
        if not attempt.stopped and useless[task.stage][task.partitions].all():
            state.stop_attempt(attempt)
            if not task.attempts:
                stage.running[task.partitions] = False
                state.tasks.pop(task.id, None)
    state.give_up([mask & ~stage.running for mask, stage in zip(useless, state.stages)])


def _need_samples(state: RunState, needed: list[np.ndarray], running: list[np.ndarray]) -> bool:
    """Add to what is needed the samples that boundaries will be made of; say whether there were any."""
    added = False
    for stage, mask in zip(state.stages, running):
        source = stage.stage.exchange.boundaries_from if stage.stage.exchange is not None else None
        if source is not None and mask.any() and not stage.resolved:
            absent = np.array([result is None for result in state.stages[source].results])
            added |= bool((absent & ~needed[source]).any())
            needed[source] |= absent
    return added
