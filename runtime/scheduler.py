"""Scheduler: what a run does next, as a pure state machine. Events in, instructions out.

No I/O, clock, thread or randomness, so that every fault is a unit test. A stage runs when its
parents are finished; its partitions are grouped into tasks (`slicing`) and given to workers
(`placement`). When blocks are lost, exactly those that somebody still has to read are made again.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from ..errors import NonDeterministicError, RunFailedError
from ..lineage.recovery import plan_recovery
from ..lineage.suspects import location
from ..ops import partitioner as partitioners
from ..ops.map_batches import MapBatchesKernel
from ..planner.plan import Exchange, PhysicalPlan, all_kernels
from .placement import Placement, TaskRun, WorkerSlots
from .scheduler_events import (
    BlocksLost,
    Cancel,
    Demand,
    Event,
    Failed,
    FailureKind,
    Finished,
    Instruction,
    Launch,
    OutputTaken,
    Record,
    RecoveryStats,
    Release,
    StageFinished,
    StageReady,
    TaskFailed,
    TaskFinished,
    WorkerJoined,
    WorkerLeft,
)
from .slicing import slice_partitions
from .stage_inputs import lineage_of
from .stage_run import (
    StageRun,
    StageState,
    broadcast_inputs,
    fan_in,
    input_sizes,
    partition_input,
)
from .task import Block, PartitionResult, StageProgram, Task, TaskResult

#: workers that may die with a task, or attempts that the system may refuse, before the run gives up
MAX_DEATHS = 4
#: attempts of a task that may fail to read inputs
MAX_FETCH_FAILURES = 8
#: bytes of input that a worker processes in a second, until tasks of the stage have been measured
ASSUMED_RATE = 200e6


class Scheduler:
    """The state of one run.

    Args:
        plan: what to run.
        run: the run's id.
        memory_bytes: how much memory a task may hold.
        quota_bytes: bound of each node's scratch folder; None is the disk's own.
        streamed: stages of outputs that wait for `Demand` events instead of running to their end.

    Attributes:
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
    ):
        self.plan = plan
        self.run = run
        self.recovery = RecoveryStats()
        self.error: BaseException | None = None
        outputs = set(plan.outputs.values())
        self.lineage = lineage_of(plan)
        self.stages = [StageRun(stage, stage.id in outputs) for stage in plan.stages]
        for stage_id in streamed:
            self.stages[stage_id].limit = 0
        self.placement = Placement()
        self._memory_bytes = memory_bytes
        self._quota_bytes = quota_bytes
        self._tasks: dict[int, TaskRun] = {}
        self._parked: list[TaskRun] = []
        self._next_id = 0
        self._lossy = False
        self._announced = False
        self._out: list[Instruction] = []

    @property
    def finished(self) -> bool:
        """Whether all outputs are there, as far as the caller hasn't taken them."""
        return self.error is None and all(s.state is StageState.FINISHED for s in self.stages if s.is_output)

    def handle(self, *events: Event) -> list[Instruction]:
        """Take events, in order, and return what to do, in order.

        Events that arrived together are best given together: the tasks of a stage are cut for all
        workers known by then.
        """
        self._out = []
        for event in events:
            if self.error is None:
                self._take(event)
        if self.error is None:
            self._advance()
        return self._out

    def _take(self, event: Event) -> None:
        if isinstance(event, WorkerJoined):
            if event.address not in self.placement.workers:
                self.placement.join(WorkerSlots(event.address, event.node, max(1, event.threads), event.host))
        elif isinstance(event, WorkerLeft):
            self._worker_left(event.address)
        elif isinstance(event, TaskFinished):
            self._task_finished(event.result)
        elif isinstance(event, TaskFailed):
            self._task_failed(event)
        elif isinstance(event, BlocksLost):
            self._mark_lost(event.lost)
        elif isinstance(event, Demand):
            stage = self.stages[event.stage]
            stage.limit = max(stage.limit, min(event.upto, stage.stage.partitions))
        elif isinstance(event, OutputTaken):
            self.stages[event.stage].taken[event.partition] = True
            self._collect(self.stages[event.stage])

    # -- events ---------------------------------------------------------------------------------

    def _task_finished(self, result: TaskResult) -> None:
        task = self._current(result.id, result.attempt)
        stage = self.stages[result.stage]
        if task is None:
            self._release_stray(stage, result)
            return
        changed = next((p for p in result.partitions if self._differs(stage, p)), None)
        if changed is not None:
            self._fail(_non_deterministic(stage, changed.index))
            return
        self.placement.remove(task)
        del self._tasks[task.id]
        nodes = {worker.node for worker in self.placement.workers.values()}
        done = []
        for partition in result.partitions:
            size = sum(file.bytes for file in partition.files)
            alive = True
            if partition.block is not None:
                size, alive = partition.block.bytes, partition.block.node in nodes
            stage.accept(partition, alive)
            self._lossy |= not alive
            done.append([partition.index, partition.rows, size, partition.fingerprint])
        stage.add_metrics(result.metrics)
        stage.tasks_finished += 1
        seconds = round(result.metrics.seconds, 3)
        self._record(["task", result.stage, result.id, result.attempt, result.node, done, seconds])

    def _task_failed(self, event: TaskFailed) -> None:
        task = self._current(event.id, event.attempt)
        if event.lost:
            self._mark_lost(event.lost)
        if task is None:
            return
        label = self.stages[event.stage].stage.label
        where = f"{label}: {_range(task.partitions)}"
        self._record(
            ["failed", event.stage, event.id, event.attempt, event.kind.value, str(event.error)[:500]]
        )
        if event.kind is FailureKind.USER:
            self._fail(event.error)
        elif event.kind is FailureKind.LOST:
            self._died(task, event.worker)
        elif event.kind is FailureKind.FETCH:
            task.fetch_failures += 1
            if task.fetch_failures >= MAX_FETCH_FAILURES:
                why = f"inputs could not be read in {MAX_FETCH_FAILURES} attempts, the last: {event.error}."
                self._fail(_failed(f"{where}: {why} Can the workers reach each other?", event.error))
        else:
            task.refusals += 1
            if task.refusals >= MAX_DEATHS:
                what = f"{type(event.error).__name__}: {event.error}"
                self._fail(
                    _failed(f"{where}: {MAX_DEATHS} attempts failed, the last with {what}", event.error)
                )
        if self.error is None:
            self._requeue(task)

    def _worker_left(self, address: str) -> None:
        worker = self.placement.leave(address)
        if worker is None:
            return
        self.recovery.workers_lost.append(address)
        lost_node = all(other.node != worker.node for other in self.placement.workers.values())
        self._record(["worker lost", address, worker.node, lost_node])
        for task in list(worker.tasks.values()):
            self._out.append(Cancel(self._name(task), address))
            self._died(task, address)
            if self.error is not None:
                return
            self._requeue(task)
        if lost_node:
            self.recovery.nodes_lost.append(worker.node)
            for stage in self.stages:
                gone = stage.on_node(worker.node)
                stage.alive[gone] = False
                self.recovery.blocks_lost += len(gone)
            self._lossy = True

    def _died(self, task: TaskRun, address: str) -> None:
        task.deaths += 1
        task.culprits.append(address)
        if task.deaths >= MAX_DEATHS:
            stage = self.stages[task.stage].stage
            self._fail(
                RunFailedError(
                    f"{stage.label}: {_range(task.partitions)} took {task.deaths} workers down "
                    f"({', '.join(task.culprits)}). The usual causes are memory (give workers more, or use "
                    "smaller partitions) and crashes in native code; the workers' logs tell."
                )
            )

    def _requeue(self, task: TaskRun) -> None:
        stage = self.stages[task.stage]
        self.placement.remove(task)
        task.worker = None
        stage.running[task.partitions] = False
        stage.queued[task.partitions] = True
        self._parked.append(task)
        self._lossy = True  # what it reads may have been lost while it ran
        self.recovery.tasks_retried += 1

    def _mark_lost(self, lost: Iterable[tuple[int, int, int]]) -> None:
        for stage_id, partition, attempt in lost:
            stage = self.stages[stage_id]
            block = stage.block(partition)
            if block is not None and block.attempt == attempt and stage.alive[partition]:
                stage.alive[partition] = False
                stage.orphans.append(block)
                self.recovery.blocks_lost += 1
                self._lossy = True

    # -- progress -------------------------------------------------------------------------------

    def _advance(self) -> None:
        if self._lossy:
            self._recover()
        if not self.finished:
            for stage in self.stages:
                if stage.state is not StageState.FINISHED and self._ready(stage):
                    self._run_stage(stage)
            self._enqueue_parked()
            while (choice := self.placement.next()) is not None:
                self._launch(*choice)
        if self.finished and not self._announced:
            self._announced = True
            self._stop()
            self._out.append(Finished())

    def _ready(self, stage: StageRun) -> bool:
        waiting = stage.state is StageState.WAITING
        awaited = stage.stage.parents if waiting else self.lineage.sources[stage.stage.id]
        return all(self.stages[parent].state is StageState.FINISHED for parent in awaited)

    def _run_stage(self, stage: StageRun) -> None:
        if stage.state is StageState.WAITING:
            stage.state = StageState.RUNNING
            self._resolve(stage)
            self._out.append(StageReady(self._program(stage)))
        pending = stage.pending
        if len(pending) and self.placement.threads:
            self._slice(stage, pending)
        if stage.done.all():
            stage.state = StageState.FINISHED
            rows = sum(result.rows for result in stage.results if result is not None)
            self._record(["stage", stage.stage.id, rows])
            self._out.append(StageFinished(stage.stage.id))
            for touched in (*self.lineage.sources[stage.stage.id], stage.stage.id):
                self._collect(self.stages[touched])

    def _resolve(self, stage: StageRun) -> None:
        exchange = stage.stage.exchange
        if exchange is None or exchange.boundaries_from is None:
            return
        sampled = self.stages[exchange.boundaries_from].results
        samples = [result.sample for result in sampled if result is not None and result.sample is not None]
        ranges = exchange.partitioner
        assert isinstance(ranges, partitioners.RangePartitioner)
        boundaries = partitioners.range_boundaries(samples, ranges.keys, ranges.count)
        stage.exchange = exchange.resolved(replace(ranges, boundaries=boundaries))
        self._record(["boundaries", stage.stage.id, _as_text(boundaries)])

    def _program(self, stage: StageRun) -> StageProgram:
        s = stage.stage
        exchange: Exchange | None = stage.exchange
        return StageProgram(self.run, s.id, s.key, s.label, s.operator, s.schema, exchange, s.sink, s.sample)

    def _slice(self, stage: StageRun, pending: np.ndarray) -> None:
        sizes, _ = input_sizes(stage, self.stages, {})
        runs = slice_partitions(pending, sizes[pending], self.placement.threads, fan_in(stage, self.stages))
        stage.queued[pending] = True
        for partitions in runs:
            self._parked.append(TaskRun(stage.stage.id, self._next_id, partitions))
            self._next_id += 1

    def _enqueue_parked(self) -> None:
        """Let the parked tasks of ready stages wait for workers, with their localities as of now."""
        by_stage: dict[int, list[TaskRun]] = {}
        for task in self._parked:
            by_stage.setdefault(task.stage, []).append(task)
        self._parked = []
        for stage_id, tasks in sorted(by_stage.items()):
            stage = self.stages[stage_id]
            if self._ready(stage):
                self._localise(stage, tasks)
                for task in tasks:
                    self.placement.add(task)
            else:
                self._parked.extend(tasks)

    def _localise(self, stage: StageRun, tasks: list[TaskRun]) -> None:
        sizes, by_node = input_sizes(stage, self.stages, self.placement.hosts())
        order = np.concatenate([task.partitions for task in tasks])
        starts = np.cumsum([0, *(len(task.partitions) for task in tasks[:-1])])
        totals = np.add.reduceat(sizes[order], starts)
        local = {node: np.add.reduceat(held[order], starts) for node, held in by_node.items()}
        mean = stage.metrics.seconds / stage.tasks_finished if stage.tasks_finished else None
        for index, task in enumerate(tasks):
            task.seconds = 0.005 + totals[index] / ASSUMED_RATE if mean is None else mean
            task.local = {node: float(held[index]) for node, held in local.items() if held[index] > 0}

    def _launch(self, task: TaskRun, worker: WorkerSlots) -> None:
        stage = self.stages[task.stage]
        task.attempt = int(stage.attempts[task.partitions].max())
        stage.attempts[task.partitions] = task.attempt + 1
        stage.queued[task.partitions] = False
        stage.running[task.partitions] = True
        stage.attempts_launched += 1
        self._tasks[task.id] = task
        partitions = tuple(partition_input(stage, int(p), self.stages) for p in task.partitions)
        broadcast = broadcast_inputs(stage, task.partitions, self.stages)
        segments = [
            s for p in partitions for slot in p.slots.values() if isinstance(slot, tuple) for s in slot
        ]
        used = {s.node for s in segments} | {s.node for slot in broadcast.values() for s in slot}
        nodes = {node: addresses for node, addresses in self.placement.nodes().items() if node in used}
        record = Task(
            self.run, task.stage, task.id, task.attempt, partitions, broadcast, nodes,
            self._memory_bytes, self._quota_bytes,
        )  # fmt: skip
        self._out.append(Launch(record, worker.address))

    # -- recovery -------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Make pending again what is lost and still to be read, back to where inputs survive.

        Partitions that run now need nothing more: they finish, or come back naming what they lack.
        """
        self._lossy = False
        plan = plan_recovery(
            self.lineage,
            present=[stage.alive | stage.running for stage in self.stages],
            needed=[~stage.taken & stage.is_output for stage in self.stages],
            unfinished=[~(stage.done | stage.running) for stage in self.stages],
            segments=lambda stage: self.stages[stage].filled,
        )
        for stage_id, partitions in plan.steps():
            stage = self.stages[stage_id]
            stage.done[partitions] = False
            stage.state = StageState.RUNNING
            self._announced = False
            self.recovery.partitions_rerun.extend((stage_id, p) for p in partitions.tolist())
            self._record(["rerun", stage_id, partitions.tolist()])
        self._parked.extend(self.placement.drain())

    # -- ends -----------------------------------------------------------------------------------

    def _collect(self, stage: StageRun) -> None:
        """Release the blocks that nobody will read again."""
        consumers = self.lineage.consumers[stage.stage.id]
        if all(self.stages[consumer].state is StageState.FINISHED for consumer in consumers):
            mask = stage.alive & stage.taken if stage.is_output else stage.alive.copy()
            self._release(stage, mask)

    def _release(self, stage: StageRun, mask: np.ndarray) -> None:
        blocks = [b for p in np.flatnonzero(mask) if (b := stage.block(int(p))) is not None]
        if blocks or stage.orphans:
            stage.alive[[block.partition for block in blocks]] = False
            self._out.append(Release([*blocks, *stage.orphans]))
            stage.orphans = []

    def _release_stray(self, stage: StageRun, result: TaskResult) -> None:
        strays = []
        for partition in result.partitions:
            current = stage.block(partition.index)
            if partition.block is not None and (current is None or not _same(current, partition.block)):
                strays.append(partition.block)
        if strays:
            self._out.append(Release(strays))

    def _stop(self) -> None:
        for task in self._tasks.values():
            if task.worker is not None:
                self._out.append(Cancel(self._name(task), task.worker))
                self.placement.remove(task)
        for task in (*self._tasks.values(), *self._parked, *self.placement.drain()):
            self.stages[task.stage].running[task.partitions] = False
            self.stages[task.stage].queued[task.partitions] = False
        self._tasks.clear()
        self._parked.clear()

    def _fail(self, error: BaseException) -> None:
        self._stop()
        self.error = error
        self._out.append(Failed(error))

    def _current(self, task_id: int, attempt: int) -> TaskRun | None:
        task = self._tasks.get(task_id)
        return task if task is not None and task.attempt == attempt and task.worker is not None else None

    def _name(self, task: TaskRun) -> str:
        return Task(self.run, task.stage, task.id, task.attempt, ()).name

    def _differs(self, stage: StageRun, result: PartitionResult) -> bool:
        before = stage.results[result.index]
        return before is not None and before.fingerprint != result.fingerprint

    def _record(self, record: list[object]) -> None:
        self._out.append(Record([record]))


def _same(a: Block, b: Block) -> bool:
    return (a.partition, a.attempt, a.node, a.path) == (b.partition, b.attempt, b.node, b.path)


def _range(partitions: np.ndarray) -> str:
    if len(partitions) == 1:
        return f"partition {partitions[0]}"
    return f"partitions {partitions[0]} to {partitions[-1]}"


def _failed(text: str, cause: BaseException) -> RunFailedError:
    error = RunFailedError(text)
    error.__cause__ = cause
    return error


def _non_deterministic(stage: StageRun, partition: int) -> NonDeterministicError:
    kernels = [k for k in all_kernels(stage.stage.operator) if isinstance(k, MapBatchesKernel)]
    functions = " or ".join(dict.fromkeys(f"map_batches({k.name}), {location(k.function)}" for k in kernels))
    cause = f"The cause is in {functions}. " if functions else "Has a file it reads changed since? "
    return NonDeterministicError(
        f"{stage.stage.label}: partition {partition} was computed again and came out different. {cause}"
        "Functions given to Headwater must return the same for the same rows: no clocks, no unseeded random "
        "numbers, no state, no order of sets. `headwater check FILE` finds the line."
    )


def _as_text(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()
