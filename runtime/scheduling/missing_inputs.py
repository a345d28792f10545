"""Missing inputs: attempts that wait for lost blocks to be made again, and are told where they are."""

from __future__ import annotations

from ..scheduler_events import InputsLost, Relocate
from ..stage_run import new_places
from .failures import count_fetch_failure
from .lost_blocks import mark_lost
from .run_state import RunState


def inputs_lost(state: RunState, event: InputsLost) -> None:
    """An attempt keeps what it has and waits; what it lacks is made again, then it is told where."""
    attempt = state.attempts.get((event.id, event.attempt))
    if attempt is None or attempt.stopped:
        return
    news = mark_lost(state, event.lost, attempt)
    attempt.lacks = attempt.lacks | {(stage, partition) for stage, partition, _ in event.lost}
    attempt.seceded = True
    state.lossy = True
    if news:  # it could not read what was thought to be there; else it says again what is known
        count_fetch_failure(state, attempt.task, None)


def relocate(state: RunState) -> None:
    """Tell waiting attempts where their inputs are, once all of them are there again."""
    for attempt in state.attempts.values():
        if not attempt.lacks or attempt.stopped:
            continue
        if all(state.stages[stage].alive[partition] for stage, partition in attempt.lacks):
            segments = new_places(attempt.record, attempt.lacks, state.stages)
            used = {segment.node for segment in segments.values()}
            nodes = {node: at for node, at in state.placement.nodes().items() if node in used}
            attempt.lacks = frozenset()
            attempt.places.update({(s.stage, s.partition): s.node for s in segments.values()})
            state.out.append(Relocate(attempt.record.name, attempt.worker, segments, nodes))
