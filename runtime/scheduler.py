"""Scheduler: what a run does next, as a pure state machine. Events in, instructions out.

No I/O, clock, thread or randomness, so that every fault is a unit test. A stage runs when its
parents are finished; its partitions are grouped into tasks (`slicing`) and given to workers
(`placement`). When blocks are lost, exactly those that somebody still has to read are made again.
What else a run may meet (losses, failures, results that are there already, slow workers) has a file
of its own in `scheduling`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from ..ops import partitioner as partitioners
from ..planner.plan import Exchange, PhysicalPlan
from .placement import Attempt, TaskRun
from .scheduler_events import (
    BlocksFound,
    BlocksLost,
    BlocksMoved,
    Demand,
    Event,
    Finished,
    InputsLost,
    Instruction,
    OutputTaken,
    Progress,
    Restore,
    StageFinished,
    StageReady,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from .scheduling.adoption import Adoption
from .scheduling.backups import back_up, note_pace
from .scheduling.departures import Departures
from .scheduling.failures import task_failed
from .scheduling.launching import (
    cut_tasks,
    enqueue_parked,
    is_ready,
    is_stuck,
    launch_waiting,
    take_back,
)
from .scheduling.lost_blocks import mark_lost
from .scheduling.missing_inputs import inputs_lost, relocate
from .scheduling.releasing import collect, keep, release_strays
from .scheduling.reruns import recover
from .scheduling.roll_back import roll_back
from .scheduling.run_state import RunState
from .stage_run import StageRun, StageState
from .task import StageProgram, TaskResult


class Scheduler:
    """Decides for one run.

    Args:
        plan: what to run.
        run: the run's id.
        memory_bytes: how much memory a task may hold.
        quota_bytes: bound of each node's scratch folder; None is the disk's own.
        streamed: stages of outputs that wait for `Demand` events instead of running to their end.
        epoch: number of the driver among those that the run has had.
        backups: whether to back up slow attempts.
        reuse: whether nodes shall keep results for later runs, as long as they have room.

    Attributes:
        now: seconds of the run, as of the last `Tick`.
        losses: the ledger of what died, and of backups.
        lineage: what every partition is made from.
        stages: how far each stage is, by id.
        recovery: what failures cost so far.
        error: why the run failed, once it did.
    """

    def __init__(
        self,
        plan: PhysicalPlan,
        run: str,
        memory_bytes: int = 256 << 20,
        quota_bytes: int | None = None,
        streamed: Iterable[int] = (),
        epoch: int = 0,
        backups: bool = True,
        reuse: bool = False,
    ):
        state = RunState(plan, run, memory_bytes, quota_bytes, epoch, reuse)
        for stage_id in streamed:
            state.stages[stage_id].limit = 0
        self.plan, self.run, self.epoch = plan, run, epoch
        self.losses, self.recovery = state.losses, state.recovery
        self.lineage, self.stages, self.placement = state.lineage, state.stages, state.placement
        self._state = state
        self._backups = backups
        self._departures = Departures(state)
        self._adoption = Adoption(state, self._departures)

    @property
    def now(self) -> float:
        """Seconds of the run, as of the last `Tick`."""
        return self._state.now

    @now.setter
    def now(self, now: float) -> None:
        self._state.now = now

    @property
    def error(self) -> BaseException | None:
        """Why the run failed, once it did."""
        return self._state.error

    @property
    def finished(self) -> bool:
        """Whether all outputs are there, as far as the caller hasn't taken them."""
        return self._state.finished

    @property
    def waits_for_gpu(self) -> str:
        """Label of a stage for which nothing else goes on than waiting for a worker with a GPU; empty if none does."""
        state = self._state
        busy = any(not attempt.lacks for attempt in state.attempts.values())
        if busy or state.placement.threads_for("gpu"):
            return ""
        waiting = {task.stage for task in (*state.placement.tasks(), *state.parked)}
        for stage in state.stages:
            wanted = stage.stage.device == "gpu" and (stage.stage.id in waiting or len(stage.pending) > 0)
            if wanted and is_ready(state, stage):
                return stage.stage.label
        return ""

    @property
    def backlog(self) -> tuple[int, float]:
        """Tasks that have no worker yet, and the seconds that they will take, as estimated."""
        state = self._state
        waiting = [*state.placement.tasks(), *state.parked]
        return len(waiting), sum(task.seconds for task in waiting)

    def handle(self, *events: Event) -> list[Instruction]:
        """Take events, in order, and return what to do, in order.

        Events that arrived together are best given together: the tasks of a stage are cut for all
        workers known by then.
        """
        state = self._state
        state.out = []
        for event in events:
            if state.error is None:
                self._take(event)
        if state.error is None:
            self._advance(_touched(events))
        return state.out

    def _take(self, event: Event) -> None:
        state = self._state
        if isinstance(event, Tick):
            state.now = event.now
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, WorkerJoined):
            self._departures.worker_joined(event)
        elif isinstance(event, WorkerLeft):
            self._departures.worker_left(event)
        elif isinstance(event, WorkerDraining):
            if event.address in state.placement.workers:
                state.placement.workers[event.address].draining = True
        elif isinstance(event, TaskFinished):
            self._task_finished(event.result)
        elif isinstance(event, TaskFailed):
            task_failed(state, event)
        elif isinstance(event, InputsLost):
            inputs_lost(state, event)
        elif isinstance(event, BlocksLost):
            mark_lost(state, event.lost)
        elif isinstance(event, BlocksFound):
            self._adoption.blocks_found(event)
        elif isinstance(event, BlocksMoved):
            self._adoption.blocks_moved(event)
        elif isinstance(event, Restore):
            self._adoption.restore(event)
        elif isinstance(event, Demand):
            stage = state.stages[event.stage]
            stage.limit = max(stage.limit, min(event.upto, stage.stage.partitions))
        elif isinstance(event, OutputTaken):
            state.stages[event.stage].taken[event.partition] = True
            collect(state, state.stages[event.stage])

    def _progress(self, event: Progress) -> None:
        state = self._state
        for attempt in state.attempts.values():
            share = event.done.get(attempt.record.name)
            if share is not None:
                attempt.share = max(attempt.share, share)
                attempt.samples.append((state.now, attempt.share))
                stage = state.stages[attempt.task.stage]
                stage.step_metrics = event.metrics.get(attempt.record.name, stage.step_metrics)

    def _task_finished(self, result: TaskResult) -> None:
        state = self._state
        attempt = state.ended(result.id, result.attempt)
        stage = state.stages[result.stage]
        if attempt is None or attempt.stopped:
            release_strays(state, stage, result.partitions)
            return
        task = attempt.task
        fresh = [p for p in result.partitions if not (stage.done[p.index] and stage.alive[p.index])]
        for partition in fresh:
            if stage.differs(partition) and not roll_back(state, stage, partition.index):
                return
        self._stop_others(task, attempt)
        del state.tasks[task.id]
        nodes = state.placement.living_nodes()
        seconds = result.metrics.seconds / max(1, len(result.partitions))
        done = []
        for partition in fresh:
            alive = partition.block is None or partition.block.node in nodes
            stage.accept(partition, alive)
            state.lossy |= not alive
            state.losses.made((stage.stage.id, partition.index), partition.bytes, seconds, state.now)
            files = [[f.path, f.target, f.rows, f.bytes] for f in partition.files]
            row = [partition.index, partition.rows, partition.bytes, partition.fingerprint]
            done.append([*row, files] if stage.stage.sink is not None else row)
        stage.running[task.partitions] = False
        if len(fresh) < len(result.partitions):
            release_strays(state, stage, result.partitions)
        stage.add_metrics(result.metrics)
        stage.training = result.training
        stage.finished_tasks.append((task.weight, result.metrics.seconds))
        note_pace(state, attempt, result.metrics.seconds)
        took = round(result.metrics.seconds, 3)
        state.record(["task", result.stage, result.id, result.attempt, result.node, done, took])

    def _stop_others(self, task: TaskRun, winner: Attempt) -> None:
        """Cancel the attempts that another one was faster than."""
        state = self._state
        state.losses.backups_won += winner.backup
        state.stages[task.stage].backups_won += winner.backup
        for other in list(task.attempts.values()):
            if other.backup:
                state.losses.lost_backup_seconds += state.now - other.started
            state.losses.wasted_seconds += state.now - other.started
            state.stop_attempt(other)

    def _advance(self, touched: set[int] | None) -> None:
        state = self._state
        if not self._adoption.settled or state.lossy or state.recut:
            touched = None
        self._adoption.restrict()
        if self._departures.in_limbo():
            return
        if state.lossy:
            recover(state)
        if state.recut:
            take_back(state)
        self._adoption.collect_adopted()
        relocate(state)
        if not state.finished:
            self._run_stages(touched)
            enqueue_parked(state)
            launch_waiting(state)
            if is_stuck(state):
                state.placement.full.clear()  # there may be room again; if not, the next attempt tells
                launch_waiting(state)
            if self._backups and not state.placement.waiting:
                back_up(state)
        if state.finished and not state.announced:
            state.announced = True
            state.stop()
            state.out.append(Finished())

    def _run_stages(self, touched: set[int] | None) -> None:
        """Let stages begin, go on and end.

        Args:
            touched: ids of the only ones of which anything may have changed; None looks at all, which would take
                too long after each task of a plan with a thousand stages.
        """
        state = self._state
        if touched is None:
            for stage in state.stages:
                if stage.state is not StageState.FINISHED and (stage.done.all() or is_ready(state, stage)):
                    self._run_stage(stage)
            return
        ids = sorted(touched)  # a heap
        while ids:
            stage = state.stages[heapq.heappop(ids)]
            if stage.state is not StageState.FINISHED and (stage.done.all() or is_ready(state, stage)):
                self._run_stage(stage)
                if stage.state is StageState.FINISHED:
                    for reader in state.readers[stage.stage.id]:
                        heapq.heappush(ids, reader)

    def _run_stage(self, stage: StageRun) -> None:
        state = self._state
        if stage.state is StageState.WAITING:
            stage.state = StageState.RUNNING
            for worker in state.placement.workers.values():
                worker.pace = (1 + worker.pace) / 2  # what was slow may have become quick
        pending = stage.pending
        if len(pending) and not stage.announced:
            stage.announced = True
            self._resolve(stage)
            state.out.append(StageReady(self._program(stage)))
        if len(pending) and state.placement.threads_for(stage.stage.device):
            cut_tasks(state, stage, pending)
        if stage.done.all():
            stage.state = StageState.FINISHED
            rows = sum(result.rows for result in stage.results if result is not None)
            state.record(["stage", stage.stage.id, rows])
            keep(state, stage)
            state.out.append(StageFinished(stage.stage.id))
            sources = state.lineage.sources[stage.stage.id]
            before = state.stages[: stage.stage.id + 1]
            collect(state, *(s for s in before if s.state is StageState.FINISHED or s.stage.id in sources))

    def _resolve(self, stage: StageRun) -> None:
        state = self._state
        exchange = stage.stage.exchange
        if exchange is None or exchange.boundaries_from is None or stage.resolved:
            return
        sampled = state.stages[exchange.boundaries_from].results
        samples = [result.sample for result in sampled if result is not None and result.sample is not None]
        ranges = exchange.partitioner
        assert isinstance(ranges, partitioners.RangePartitioner)
        boundaries = partitioners.range_boundaries(samples, ranges.keys, ranges.count)
        stage.resolve(boundaries)
        state.record_boundaries(stage)

    def _program(self, stage: StageRun) -> StageProgram:
        s = stage.stage
        exchange: Exchange | None = stage.exchange
        merges = stage.is_output or s.storage is not None
        return StageProgram(
            self._state.run,
            s.id,
            s.key,
            s.label,
            s.operator,
            s.schema,
            exchange,
            s.sink,
            s.sample,
            merges,
            s.device,
        )


def _touched(events: Sequence[Event]) -> set[int] | None:
    """Ids of the stages of which tasks have finished; None if more has happened than that."""
    if not all(isinstance(event, TaskFinished | Progress | Tick) for event in events):
        return None
    return {event.result.stage for event in events if isinstance(event, TaskFinished)}
