"""Departures: what a worker or node that goes takes with it, and whether it may come back."""

from __future__ import annotations

from ..placement import WorkerSlots
from ..scheduler_events import Cancel, Cause, Survey, WorkerJoined, WorkerLeft
from .failures import blame, requeue
from .lost_blocks import count_lost
from .run_state import RunState

#: seconds that nodes have to come back to a new Dask scheduler, once the first of its workers is there
LIMBO_SECONDS = 5.0


class Departures:
    """The workers and nodes that went.

    Args:
        state: of the run.

    Attributes:
        limbo: nodes that may come back to a new Dask scheduler, their blocks unharmed.
    """

    def __init__(self, state: RunState):
        self.limbo: set[str] = set()
        self._state = state
        #: nodes that were lost
        self._gone: set[str] = set()
        #: when those in limbo are lost too, in seconds of the run; None until a worker of the new one is there
        self._limbo_ends: float | None = None

    def worker_joined(self, event: WorkerJoined) -> None:
        """Let a worker take tasks; if its node was here before, ask what it has."""
        state = self._state
        if event.address in state.placement.workers:
            return
        if event.node in self._gone or event.node in self.limbo:
            state.out.append(Survey(event.node))
        self._gone.discard(event.node)
        slots = WorkerSlots(event.address, event.node, max(1, event.threads), event.host, gpu=event.gpu)
        state.placement.join(slots)
        state.recut = True

    def worker_left(self, event: WorkerLeft) -> None:
        """Let its attempts wait for another worker; its blocks are gone if it was the last of its node."""
        state = self._state
        worker = state.placement.leave(event.address)
        if worker is None:
            return
        node, cause = worker.node, event.cause
        lost_node = node not in state.placement.living_nodes()
        state.record(
            ["worker lost", event.address, node, lost_node and cause is not Cause.SCHEDULER, cause.value,
             round(event.silent, 3)]
        )  # fmt: skip
        what = f"node {node[:8]}" if lost_node else f"worker {event.address}"
        attempts = [attempt for attempt in worker.attempts.values() if not attempt.stopped]
        if cause is not Cause.LEFT or attempts:
            loss = state.losses.begin(cause.value, what, state.now, event.silent)
            loss.tasks, loss.recovered = len(attempts), state.now
            state.recovery.workers_lost.append(event.address)
        if cause not in (Cause.LEFT, Cause.SCHEDULER):
            blame(state, worker.executing(), event.address, node)
        for attempt in list(worker.attempts.values()):
            if not attempt.stopped:
                state.out.append(Cancel(attempt.record.name, event.address))
            state.ended(attempt.task.id, attempt.number)
        for attempt in attempts:
            state.losses.broken_seconds += state.now - attempt.started
            requeue(state, attempt.task)
        if not lost_node:
            return
        if cause is Cause.SCHEDULER:
            self.limbo.add(node)
            self._limbo_ends = None
        else:
            self.limbo.discard(node)
            if cause is not Cause.LEFT:
                state.recovery.nodes_lost.append(node)
            self._lose_node(node, cause)

    def _lose_node(self, node: str, cause: Cause) -> None:
        """The blocks of a node can't be read any more, but for those of which another one has a copy."""
        state = self._state
        self._gone.add(node)
        state.placement.full.discard(node)
        living = state.placement.living_nodes()
        lost = [(stage, gone) for stage in state.stages if len(gone := stage.lose_node(node, living))]
        if lost and cause in (Cause.LEFT, Cause.SCHEDULER):
            state.losses.begin(cause.value, f"node {node[:8]}", state.now).recovered = state.now
        for stage, gone in lost:
            count_lost(state, stage, gone)
        state.lossy = True

    def in_limbo(self) -> bool:
        """Whether nodes of a Dask scheduler that died may still come back to the new one."""
        state = self._state
        if self.limbo and self._limbo_ends is None and state.placement.workers:
            self._limbo_ends = state.now + LIMBO_SECONDS
        if self.limbo and self._limbo_ends is not None and state.now >= self._limbo_ends:
            for node in sorted(self.limbo):
                state.recovery.nodes_lost.append(node)
                self._lose_node(node, Cause.SCHEDULER)
            self.limbo.clear()
        return bool(self.limbo)
