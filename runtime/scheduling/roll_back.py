"""Roll-back: a partition came out with other bytes, so what was made of the old ones counts no more."""

from __future__ import annotations

import numpy as np

from ..failure_text import non_deterministic
from ..stage_run import StageRun
from .releasing import release
from .run_state import RunState


def roll_back(state: RunState, stage: StageRun, partition: int) -> bool:
    """Bytes changed: forget what was made of the old ones if that was declared, or else fail."""
    if stage.stage.id not in state.indeterminate:
        state.fail(non_deterministic(stage.stage, partition))
        return False
    dependents = state.lineage.dependents(state.lineage.select(stage.stage.id, [partition]))
    for other, mask in zip(state.stages, dependents):
        known = [fingerprint is not None for fingerprint in other.fingerprints]
        hit = mask & (other.done | other.running | known)
        if (hit & other.taken).any():
            state.fail(non_deterministic(stage.stage, partition, read=True))
            return False
        if hit.any():
            _forget(state, other, hit)
    stage.fingerprints[partition] = None
    return True


def _forget(state: RunState, stage: StageRun, mask: np.ndarray) -> None:
    """Make partitions as if they had never been computed."""
    if state.losses.all:
        made = np.flatnonzero(mask & stage.done)
        state.losses.need(((stage.stage.id, p), stage.size(p)) for p in made.tolist())
    for attempt in list(state.attempts.values()):
        task = attempt.task
        if task.stage == stage.stage.id and not attempt.stopped and mask[task.partitions].any():
            state.stop_attempt(attempt)
            if not task.attempts:
                stage.running[task.partitions] = False
                state.tasks.pop(task.id, None)
    release(state, stage, mask & stage.alive)
    forgotten = np.flatnonzero(mask)
    stage.forget(forgotten)
    state.announced = False
    state.lossy = True
    state.record(["rolled back", stage.stage.id, forgotten.tolist()])
    state.record_boundaries(stage)
