"""Adoption: results that are there already, of an earlier driver, an earlier run or another node."""

from __future__ import annotations

import numpy as np

from ...lineage.recovery import plan_recovery
from ..scheduler_events import BlocksFound, BlocksMoved, Restore
from ..stage_inputs import with_samples
from ..stage_run import StageRun, StageState
from ..task import Block, PartitionResult
from .departures import Departures
from .lost_blocks import mark_lost
from .releasing import collect
from .run_state import RunState


class Adoption:
    """What was there before this driver made it.

    Args:
        state: of the run.
        departures: the nodes that may come back; they do by saying what they have.
    """

    def __init__(self, state: RunState, departures: Departures):
        self._state = state
        self._departures = departures
        #: whether it is settled which partitions have to run
        self._restricted = True
        #: partitions that an earlier driver knew to be finished, and their bytes
        self._finished_before: dict[tuple[int, int], int] = {}
        #: stages that got back blocks which nobody may need
        self._adopted: set[int] = set()

    @property
    def settled(self) -> bool:
        """Whether it is known which partitions have to run."""
        return self._restricted

    def restore(self, event: Restore) -> None:
        """Begin with what an earlier driver of the run has left."""
        state = self._state
        for (stage_id, partition), fingerprint in event.fingerprints.items():
            state.stages[stage_id].fingerprints[partition] = fingerprint
        for stage_id, boundaries in event.boundaries.items():
            state.stages[stage_id].resolve(boundaries)
        for stage_id, result in event.staged:
            state.stages[stage_id].accept(result, alive=True)
        self._finished_before = dict(event.finished)
        self._restricted = False

    def blocks_found(self, event: BlocksFound) -> None:
        """Take results that a node has, unless there are others or their bytes aren't those expected."""
        state = self._state
        if event.node not in state.placement.living_nodes():
            return  # it is gone again
        complete = event.node in self._departures.limbo
        adopted: dict[int, list[list[object]]] = {}
        seen = set()
        for result in event.results:
            block = result.block
            if block is None or not self._fits(block):
                continue
            stage = state.stages[block.stage]
            seen.add((block.stage, block.partition, block.attempt))
            if stage.alive[result.index]:
                stage.add_copy(block)
            elif self._is_expected(stage, result):
                # a copy of what nobody reads any more
                late = block.is_kept and bool(stage.done[result.index])
                stage.accept(result, alive=True)
                state.losses.returned((block.stage, result.index), state.now)
                row = [result.index, block.attempt, result.rows, block.bytes, result.fingerprint]
                adopted.setdefault(block.stage, []).append(row)
                state.recovery.adopted += not late
        for stage_id, rows in adopted.items():
            self._adopted.add(stage_id)
            state.record(["adopted", stage_id, event.node, rows])
        if complete:
            self._departures.limbo.discard(event.node)
            lost = [
                (stage.stage.id, int(p), block.attempt)
                for stage in state.stages
                for p in stage.on_node(event.node)
                if (block := stage.block(int(p))) is not None
            ]
            mark_lost(state, (part for part in lost if part not in seen))
        if adopted:
            self._drop_done_work()

    def _is_expected(self, stage: StageRun, result: PartitionResult) -> bool:
        """Whether bytes are those that count. Where they may vary, they may be of inputs that were rolled back."""
        known = stage.fingerprints[result.index]
        unknown_will_do = stage.stage.id not in self._state.indeterminate
        return known == result.fingerprint or (known is None and unknown_will_do)

    def _fits(self, block: Block) -> bool:
        """Whether a block is of this plan, and readable by its consumers."""
        state = self._state
        if block.stage >= len(state.stages):
            return False
        stage = state.stages[block.stage]
        count = stage.stage.exchange.count if stage.stage.exchange else 1
        return (
            stage.stage.sink is None
            and block.partition < stage.stage.partitions
            and len(block.segment_rows) == count
        )

    def _drop_done_work(self) -> None:
        """Take out of tasks what was found to be there already."""
        state = self._state
        for attempt in list(state.attempts.values()):
            task = attempt.task
            stage = state.stages[task.stage]
            if not attempt.stopped and stage.done[task.partitions].all():
                state.stop_attempt(attempt)
                stage.running[task.partitions] = False
                state.tasks.pop(task.id, None)
        state.trim_waiting()
        state.lossy = True

    def blocks_moved(self, event: BlocksMoved) -> None:
        """Take the new places of blocks that another node has now."""
        state = self._state
        moved: list[list[int]] = []
        for stage_id, partition, attempt in event.parts:
            if state.stages[stage_id].move(partition, attempt, event.source, event.target):
                moved.append([stage_id, partition])
                self._adopted.add(stage_id)
                state.losses.returned((stage_id, partition), state.now)
        if moved:
            state.record(["moved", event.source, event.target, moved])
            self._drop_done_work()

    def restrict(self) -> None:
        """Leave out what no output needs, once, if something later was restored."""
        state = self._state
        if self._restricted:
            return
        self._restricted = True
        graph = with_samples(state.plan, [stage.exchange for stage in state.stages])
        plan = plan_recovery(
            graph,
            present=[stage.alive for stage in state.stages],
            needed=[~stage.taken & stage.is_output for stage in state.stages],
            segments=lambda stage: state.stages[stage].filled,
        )
        again = [
            ((stage.stage.id, p), self._finished_before[stage.stage.id, p])
            for stage, mask in zip(state.stages, plan.rerun)
            for p in np.flatnonzero(mask).tolist()
            if (stage.stage.id, p) in self._finished_before
        ]
        if self._finished_before:
            loss = state.losses.begin("driver died", "the driver", state.now)
            gone = [part for part in self._finished_before if not state.stages[part[0]].alive[part[1]]]
            loss.recovered = state.now
            state.losses.lose(loss, len(gone), sum(self._finished_before[part] for part in gone))
            state.losses.need(again)
        for stage, mask in zip(state.stages, plan.rerun):
            skipped = np.flatnonzero(~(mask | stage.done))
            if len(skipped):
                stage.done[skipped] = True
                state.record(["skipped", stage.stage.id, skipped.tolist()])
        self._finished_before = {}

    def collect_adopted(self) -> None:
        """Release what came back though nobody will read it."""
        state = self._state
        for stage_id in sorted(self._adopted):
            if state.stages[stage_id].state is StageState.FINISHED:
                collect(state, state.stages[stage_id])
        self._adopted.clear()
