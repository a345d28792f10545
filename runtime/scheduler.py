"""Scheduler: what a run does next, as a pure state machine. Events in, instructions out.

No I/O, clock, thread or randomness, so that every fault is a unit test. A stage runs when its
parents are finished; its partitions are grouped into tasks (`slicing`) and given to workers
(`placement`). When blocks are lost, exactly those that somebody still has to read are made again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import RunFailedError
from ..lineage.recovery import Recovery, plan_recovery
from ..ops import partitioner as partitioners
from ..planner.plan import Exchange, PhysicalPlan
from .failure_text import non_deterministic, partitions_text, poisonous, with_cause
from .losses import Losses
from .placement import Attempt, Placement, TaskRun, WorkerSlots
from .scheduler_events import (
    BlocksFound,
    BlocksLost,
    BlocksMoved,
    Cancel,
    Cause,
    Demand,
    Event,
    Failed,
    FailureKind,
    Finished,
    InputsLost,
    Instruction,
    Keep,
    Launch,
    OutputTaken,
    Progress,
    Record,
    RecoveryStats,
    Release,
    Relocate,
    Restore,
    StageFinished,
    StageReady,
    Survey,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from .slicing import PARTITION_COST, slice_partitions
from .stage_inputs import indeterminate_stages, lineage_of, with_samples
from .stage_run import (
    StageRun,
    StageState,
    broadcast_inputs,
    fan_in,
    input_sizes,
    is_same,
    new_places,
    partition_input,
)
from .stragglers import RunningAttempt, choose_backup, recent_rate, unit_seconds
from .tables import table_text
from .task import Block, PartitionResult, StageProgram, Task, TaskResult

#: workers that may die with a task, or attempts that the system may refuse, before the run gives up
MAX_DEATHS = 4
#: attempts of a task that may fail to read inputs
MAX_FETCH_FAILURES = 8
#: bytes of input that a worker processes in a second, until tasks of the stage have been measured
ASSUMED_RATE = 200e6
#: attempts that a driver may make at a partition; those of the next driver are numbered from there
EPOCH_ATTEMPTS = 10_000
#: seconds that nodes have to come back to a new Dask scheduler, once the first of its workers is there
LIMBO_SECONDS = 5.0
#: tasks shorter than this, in seconds, tell nothing about a worker's pace
LEAST_TIMED = 0.05


class Scheduler:
    """The state of one run.

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
        self.plan = plan
        self.run = run
        self.epoch = epoch
        self.now = 0.0
        self.losses = Losses()
        self.recovery = RecoveryStats()
        self.error: BaseException | None = None
        outputs = set(plan.outputs.values())
        self.lineage = lineage_of(plan)
        self.stages = [StageRun(stage, stage.id in outputs) for stage in plan.stages]
        for stage in self.stages:
            stage.attempts[:] = epoch * EPOCH_ATTEMPTS
        for stage_id in streamed:
            self.stages[stage_id].limit = 0
        self.placement = Placement()
        self._memory_bytes = memory_bytes
        self._quota_bytes = quota_bytes
        self._backups, self._reuse = backups, reuse
        self._indeterminate = indeterminate_stages(plan)
        #: tasks with a living attempt, by id
        self._tasks: dict[int, TaskRun] = {}
        #: attempts that hold a thread, those that were cancelled and haven't answered included
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._parked: list[TaskRun] = []
        #: whether waiting tasks are to be cut anew, for other workers than before
        self._recut = False
        self._next_id = 0
        #: nodes that were lost, and nodes that may come back to a new Dask scheduler, until when
        self._gone_nodes: set[str] = set()
        self._limbo: set[str] = set()
        self._limbo_ends: float | None = None
        #: whether it is settled which partitions have to run
        self._restricted = True
        self._finished_before: dict[tuple[int, int], int] = {}
        self._lossy = False
        #: stages that got back blocks which nobody may need
        self._adopted: set[int] = set()
        self._announced = False
        self._out: list[Instruction] = []

    @property
    def finished(self) -> bool:
        """Whether all outputs are there, as far as the caller hasn't taken them."""
        return self.error is None and all(s.state is StageState.FINISHED for s in self.stages if s.is_output)

    @property
    def backlog(self) -> tuple[int, float]:
        """Tasks that have no worker yet, and the seconds that they will take, as estimated."""
        waiting = [*self.placement.tasks(), *self._parked]
        return len(waiting), sum(task.seconds for task in waiting)

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
        if isinstance(event, Tick):
            self.now = event.now
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, WorkerJoined):
            self._worker_joined(event)
        elif isinstance(event, WorkerLeft):
            self._worker_left(event)
        elif isinstance(event, WorkerDraining):
            if event.address in self.placement.workers:
                self.placement.workers[event.address].draining = True
        elif isinstance(event, TaskFinished):
            self._task_finished(event.result)
        elif isinstance(event, TaskFailed):
            self._task_failed(event)
        elif isinstance(event, InputsLost):
            self._inputs_lost(event)
        elif isinstance(event, BlocksLost):
            self._mark_lost(event.lost)
        elif isinstance(event, BlocksFound):
            self._blocks_found(event)
        elif isinstance(event, BlocksMoved):
            self._blocks_moved(event)
        elif isinstance(event, Restore):
            self._restore(event)
        elif isinstance(event, Demand):
            stage = self.stages[event.stage]
            stage.limit = max(stage.limit, min(event.upto, stage.stage.partitions))
        elif isinstance(event, OutputTaken):
            self.stages[event.stage].taken[event.partition] = True
            self._collect(self.stages[event.stage])

    def _progress(self, event: Progress) -> None:
        for attempt in self._attempts.values():
            share = event.done.get(self._name(attempt))
            if share is not None:
                attempt.share = max(attempt.share, share)
                attempt.samples.append((self.now, attempt.share))

    # -- results --------------------------------------------------------------------------------

    def _task_finished(self, result: TaskResult) -> None:
        attempt = self._ended(result.id, result.attempt)
        stage = self.stages[result.stage]
        if attempt is None or attempt.stopped:
            self._release_strays(stage, result.partitions)
            return
        task = attempt.task
        fresh = [p for p in result.partitions if not (stage.done[p.index] and stage.alive[p.index])]
        for partition in fresh:
            if stage.differs(partition) and not self._roll_back(stage, partition.index):
                return
        self._stop_others(task, attempt)
        del self._tasks[task.id]
        nodes = self.placement.living_nodes()
        seconds = result.metrics.seconds / max(1, len(result.partitions))
        done = []
        for partition in fresh:
            alive = partition.block is None or partition.block.node in nodes
            stage.accept(partition, alive)
            self._lossy |= not alive
            self.losses.made((stage.stage.id, partition.index), partition.bytes, seconds, self.now)
            files = [[f.path, f.target, f.rows, f.bytes] for f in partition.files]
            row = [partition.index, partition.rows, partition.bytes, partition.fingerprint]
            done.append([*row, files] if stage.stage.sink is not None else row)
        stage.running[task.partitions] = False
        if len(fresh) < len(result.partitions):
            self._release_strays(stage, result.partitions)
        stage.add_metrics(result.metrics)
        stage.finished_tasks.append((task.weight, result.metrics.seconds))
        self._note_pace(attempt, result.metrics.seconds)
        took = round(result.metrics.seconds, 3)
        self._record(["task", result.stage, result.id, result.attempt, result.node, done, took])

    def _stop_others(self, task: TaskRun, winner: Attempt) -> None:
        """Cancel the attempts that another one was faster than."""
        self.losses.backups_won += winner.backup
        for other in list(task.attempts.values()):
            backup = winner if winner.backup else other
            self.losses.backup_seconds += self.now - backup.started
            self.losses.wasted_seconds += self.now - other.started
            self._stop_attempt(other)

    def _task_failed(self, event: TaskFailed) -> None:
        worker = self.placement.workers.get(event.worker)
        executing = [] if worker is None else worker.executing()
        attempt = self._ended(event.id, event.attempt)
        if event.lost and attempt is not None:
            self._mark_lost(event.lost, attempt)
        if attempt is None or attempt.stopped:
            return
        task, stage = attempt.task, self.stages[event.stage].stage
        where = f"{stage.label}: {partitions_text(task.partitions)}"
        self._record(
            ["failed", event.stage, event.id, event.attempt, event.kind.value, str(event.error)[:500]]
        )
        if event.kind is FailureKind.USER:
            self._fail(event.error)
        elif event.kind is FailureKind.LOST:
            if attempt in executing:
                self._charge(task, event.worker, alone=len(executing) == 1)
        elif event.kind is FailureKind.FETCH:
            self._count_fetch_failure(task, event.error)
        elif event.kind is FailureKind.DISK:
            self._disk_full(attempt, event.error)
        else:
            task.refusals += 1
            if task.refusals >= MAX_DEATHS:
                what = f"{type(event.error).__name__}: {event.error}"
                self._fail(
                    with_cause(f"{where}: {MAX_DEATHS} attempts failed, the last with {what}", event.error)
                )
        self._requeue(task)

    def _count_fetch_failure(self, task: TaskRun, error: BaseException | None) -> None:
        task.fetch_failures += 1
        if task.fetch_failures >= MAX_FETCH_FAILURES:
            where = f"{self.stages[task.stage].stage.label}: {partitions_text(task.partitions)}"
            last = "" if error is None else f", the last: {error}"
            text = f"{where}: inputs could not be read in {MAX_FETCH_FAILURES} attempts{last}. "
            failure = RunFailedError(f"{text}Can the workers reach each other?")
            failure.__cause__ = error
            self._fail(failure)

    def _disk_full(self, attempt: Attempt, error: BaseException) -> None:
        """Let other nodes have the work, until blocks of this one are released; fail if there is none."""
        worker = self.placement.workers.get(attempt.worker)
        if worker is not None and worker.node not in self.placement.full:
            self.placement.full.add(worker.node)
            loss = self.losses.begin("disk full", f"node {worker.node[:8]}", self.now)
            loss.tasks, loss.recovered = 1, self.now
        if self.placement.living_nodes() <= self.placement.full:
            self._fail(error)

    # -- losses ---------------------------------------------------------------------------------

    def _worker_joined(self, event: WorkerJoined) -> None:
        if event.address in self.placement.workers:
            return
        if event.node in self._gone_nodes or event.node in self._limbo:
            self._out.append(Survey(event.node))
        self._gone_nodes.discard(event.node)
        slots = WorkerSlots(event.address, event.node, max(1, event.threads), event.host)
        self.placement.join(slots)
        self._recut = True

    def _worker_left(self, event: WorkerLeft) -> None:
        worker = self.placement.leave(event.address)
        if worker is None:
            return
        node, cause = worker.node, event.cause
        lost_node = node not in self.placement.living_nodes()
        self._record(
            ["worker lost", event.address, node, lost_node and cause is not Cause.SCHEDULER, cause.value,
             round(event.silent, 3)]
        )  # fmt: skip
        what = f"node {node[:8]}" if lost_node else f"worker {event.address}"
        attempts = [attempt for attempt in worker.attempts.values() if not attempt.stopped]
        if cause is not Cause.LEFT or attempts:
            loss = self.losses.begin(cause.value, what, self.now, event.silent)
            loss.tasks, loss.recovered = len(attempts), self.now
            self.recovery.workers_lost.append(event.address)
        if cause not in (Cause.LEFT, Cause.SCHEDULER):
            self._blame(worker.executing(), event.address, node)
        for attempt in list(worker.attempts.values()):
            if not attempt.stopped:
                self._out.append(Cancel(self._name(attempt), event.address))
            self._ended(attempt.task.id, attempt.number)
        for attempt in attempts:
            self.losses.broken_seconds += self.now - attempt.started
            self._requeue(attempt.task)
        if not lost_node:
            return
        if cause is Cause.SCHEDULER:
            self._limbo.add(node)
            self._limbo_ends = None
        else:
            self._limbo.discard(node)
            if cause is not Cause.LEFT:
                self.recovery.nodes_lost.append(node)
            self._lose_node(node, cause)

    def _lose_node(self, node: str, cause: Cause) -> None:
        """The blocks of a node can't be read any more, but for those of which another one has a copy."""
        self._gone_nodes.add(node)
        self.placement.full.discard(node)
        living = self.placement.living_nodes()
        lost = [(stage, gone) for stage in self.stages if len(gone := stage.lose_node(node, living))]
        if lost and cause in (Cause.LEFT, Cause.SCHEDULER):
            self.losses.begin(cause.value, f"node {node[:8]}", self.now).recovered = self.now
        for stage, gone in lost:
            self._count_lost(stage, gone)
        self._lossy = True

    def _blame(self, executing: list[Attempt], address: str, node: str) -> None:
        """A worker died: a task that ran alone is charged; of several, all become suspects."""
        for attempt in executing:
            if not attempt.stopped:
                attempt.task.avoid.add(node)
                self._charge(attempt.task, address, alone=len(executing) == 1)

    def _charge(self, task: TaskRun, address: str, alone: bool) -> None:
        if not alone:
            task.company += 1
            return
        task.deaths += 1
        task.culprits.append(address)
        if task.deaths >= MAX_DEATHS:
            self._fail(poisonous(self.stages[task.stage].stage, task.partitions, task.culprits))

    def _requeue(self, task: TaskRun) -> None:
        """Let a task wait for a worker again, unless another attempt at it is under way."""
        if self.error is not None or task.attempts or task.id not in self._tasks:
            return
        stage = self.stages[task.stage]
        stage.running[task.partitions] = False
        del self._tasks[task.id]
        self.recovery.tasks_retried += 1
        self._lossy = True  # what it reads may have been lost while it ran
        parts = task.partitions[~stage.done[task.partitions]]
        if not len(parts):
            return
        stage.queued[parts] = True
        pieces = np.split(parts, len(parts)) if task.suspect else [parts]
        for piece in pieces:
            again = TaskRun(
                task.stage, self._new_id() if len(pieces) > 1 else task.id, piece,
                deaths=task.deaths, company=task.company, fetch_failures=task.fetch_failures,
                refusals=task.refusals, culprits=list(task.culprits), avoid=set(task.avoid),
            )  # fmt: skip
            self._parked.append(again)

    def _mark_lost(self, lost: Iterable[tuple[int, int, int]], reader: Attempt | None = None) -> bool:
        """Blocks can't be read; those that lie elsewhere by now than their reader was told can.

        Returns:
            Whether that is news.
        """
        found: dict[int, list[int]] = {}
        news, lost = False, list(lost)
        told = {} if reader is None else reader.told({(stage, partition) for stage, partition, _ in lost})
        for stage_id, partition, attempt in lost:
            stage = self.stages[stage_id]
            block = stage.block(partition)
            if (
                block is not None
                and block.attempt == attempt
                and stage.alive[partition]
                and block.node == told.get((stage_id, partition), block.node)
            ):
                news = True
                stage.orphans.append(block)
                if not stage.use_copy(partition, self.placement.living_nodes() - {block.node}):
                    stage.alive[partition] = False
                    found.setdefault(stage_id, []).append(partition)
                self._lossy = True
        if found:
            count = sum(map(len, found.values()))
            self.losses.begin("unreadable", f"{count} blocks", self.now).recovered = self.now
            for stage_id, partitions in found.items():
                self._count_lost(self.stages[stage_id], np.array(partitions))
        return news

    def _count_lost(self, stage: StageRun, partitions: np.ndarray) -> None:
        size = sum(block.bytes for p in partitions if (block := stage.block(int(p))) is not None)
        self.losses.lose(self.losses.all[-1], len(partitions), size)
        self.recovery.blocks_lost += len(partitions)

    def _inputs_lost(self, event: InputsLost) -> None:
        """An attempt keeps what it has and waits; what it lacks is made again, then it is told where."""
        attempt = self._attempts.get((event.id, event.attempt))
        if attempt is None or attempt.stopped:
            return
        news = self._mark_lost(event.lost, attempt)
        attempt.lacks = attempt.lacks | {(stage, partition) for stage, partition, _ in event.lost}
        attempt.seceded = True
        self._lossy = True
        if news:  # it could not read what was thought to be there; else it says again what is known
            self._count_fetch_failure(attempt.task, None)

    def _relocate(self) -> None:
        """Tell waiting attempts where their inputs are, once all of them are there again."""
        for attempt in self._attempts.values():
            if not attempt.lacks or attempt.stopped:
                continue
            if all(self.stages[stage].alive[partition] for stage, partition in attempt.lacks):
                segments = new_places(attempt.record, attempt.lacks, self.stages)
                used = {segment.node for segment in segments.values()}
                nodes = {node: at for node, at in self.placement.nodes().items() if node in used}
                attempt.lacks = frozenset()
                attempt.places.update({(s.stage, s.partition): s.node for s in segments.values()})
                self._out.append(Relocate(self._name(attempt), attempt.worker, segments, nodes))

    def _roll_back(self, stage: StageRun, partition: int) -> bool:
        """Bytes changed: forget what was made of the old ones if that was declared, or else fail."""
        if stage.stage.id not in self._indeterminate:
            self._fail(non_deterministic(stage.stage, partition))
            return False
        dependents = self.lineage.dependents(self.lineage.select(stage.stage.id, [partition]))
        for other, mask in zip(self.stages, dependents):
            known = [fingerprint is not None for fingerprint in other.fingerprints]
            hit = mask & (other.done | other.running | known)
            if (hit & other.taken).any():
                self._fail(non_deterministic(stage.stage, partition, read=True))
                return False
            if hit.any():
                self._forget(other, hit)
        stage.fingerprints[partition] = None
        return True

    def _forget(self, stage: StageRun, mask: np.ndarray) -> None:
        """Make partitions as if they had never been computed."""
        if self.losses.all:
            made = np.flatnonzero(mask & stage.done)
            self.losses.need(((stage.stage.id, p), stage.size(p)) for p in made.tolist())
        for attempt in list(self._attempts.values()):
            task = attempt.task
            if task.stage == stage.stage.id and not attempt.stopped and mask[task.partitions].any():
                self._stop_attempt(attempt)
                if not task.attempts:
                    stage.running[task.partitions] = False
                    self._tasks.pop(task.id, None)
        self._release(stage, mask & stage.alive)
        forgotten = np.flatnonzero(mask)
        stage.forget(forgotten)
        self._announced = False
        self._lossy = True
        self._record(["rolled back", stage.stage.id, forgotten.tolist()])
        self._record_boundaries(stage)

    # -- what is there already ------------------------------------------------------------------

    def _restore(self, event: Restore) -> None:
        """Begin with what an earlier driver of the run has left."""
        for (stage_id, partition), fingerprint in event.fingerprints.items():
            self.stages[stage_id].fingerprints[partition] = fingerprint
        for stage_id, boundaries in event.boundaries.items():
            self.stages[stage_id].resolve(boundaries)
        for stage_id, result in event.staged:
            self.stages[stage_id].accept(result, alive=True)
        self._finished_before = dict(event.finished)
        self._restricted = False

    def _blocks_found(self, event: BlocksFound) -> None:
        """Take results that a node has, unless there are others or their bytes aren't those expected."""
        if event.node not in self.placement.living_nodes():
            return  # it is gone again
        complete = event.node in self._limbo
        adopted: dict[int, list[list[object]]] = {}
        seen = set()
        for result in event.results:
            block = result.block
            if block is None or not self._fits(block):
                continue
            stage = self.stages[block.stage]
            seen.add((block.stage, block.partition, block.attempt))
            if stage.alive[result.index]:
                stage.add_copy(block)
            elif self._is_expected(stage, result):
                late = block.is_kept and bool(
                    stage.done[result.index]
                )  # a copy of what nobody reads any more
                stage.accept(result, alive=True)
                self.losses.returned((block.stage, result.index), self.now)
                row = [result.index, block.attempt, result.rows, block.bytes, result.fingerprint]
                adopted.setdefault(block.stage, []).append(row)
                self.recovery.adopted += not late
        for stage_id, rows in adopted.items():
            self._adopted.add(stage_id)
            self._record(["adopted", stage_id, event.node, rows])
        if complete:
            self._limbo.discard(event.node)
            lost = [
                (stage.stage.id, int(p), block.attempt)
                for stage in self.stages
                for p in stage.on_node(event.node)
                if (block := stage.block(int(p))) is not None
            ]
            self._mark_lost(part for part in lost if part not in seen)
        if adopted:
            self._drop_done_work()

    def _is_expected(self, stage: StageRun, result: PartitionResult) -> bool:
        """Whether bytes are those that count. Where they may vary, they may be of inputs that were rolled back."""
        known = stage.fingerprints[result.index]
        unknown_will_do = stage.stage.id not in self._indeterminate
        return known == result.fingerprint or (known is None and unknown_will_do)

    def _fits(self, block: Block) -> bool:
        """Whether a block is of this plan, and readable by its consumers."""
        if block.stage >= len(self.stages):
            return False
        stage = self.stages[block.stage]
        count = stage.stage.exchange.count if stage.stage.exchange else 1
        return (
            stage.stage.sink is None
            and block.partition < stage.stage.partitions
            and len(block.segment_rows) == count
        )

    def _drop_done_work(self) -> None:
        """Take out of tasks what was found to be there already."""
        for attempt in list(self._attempts.values()):
            task = attempt.task
            stage = self.stages[task.stage]
            if not attempt.stopped and stage.done[task.partitions].all():
                self._stop_attempt(attempt)
                stage.running[task.partitions] = False
                self._tasks.pop(task.id, None)
        self._trim_waiting()
        self._lossy = True

    def _trim_waiting(self) -> None:
        """Take out of tasks that wait for a worker what need not be made."""
        tasks, self._parked = [*self._parked, *self.placement.drain()], []
        for task in tasks:
            done = self.stages[task.stage].done[task.partitions]
            self.stages[task.stage].queued[task.partitions[done]] = False
            if not done.all():
                task.partitions = task.partitions[~done]
                self._parked.append(task)

    def _blocks_moved(self, event: BlocksMoved) -> None:
        moved: list[list[int]] = []
        for stage_id, partition, attempt in event.parts:
            if self.stages[stage_id].move(partition, attempt, event.source, event.target):
                moved.append([stage_id, partition])
                self._adopted.add(stage_id)
                self.losses.returned((stage_id, partition), self.now)
        if moved:
            self._record(["moved", event.source, event.target, moved])
            self._drop_done_work()

    def _restrict(self) -> None:
        """Leave out what no output needs, as something later is there already."""
        self._restricted = True
        graph = with_samples(self.plan, [stage.exchange for stage in self.stages])
        plan = plan_recovery(
            graph,
            present=[stage.alive for stage in self.stages],
            needed=[~stage.taken & stage.is_output for stage in self.stages],
            segments=lambda stage: self.stages[stage].filled,
        )
        again = [
            ((stage.stage.id, p), self._finished_before[stage.stage.id, p])
            for stage, mask in zip(self.stages, plan.rerun)
            for p in np.flatnonzero(mask).tolist()
            if (stage.stage.id, p) in self._finished_before
        ]
        if self._finished_before:
            loss = self.losses.begin("driver died", "the driver", self.now)
            gone = [part for part in self._finished_before if not self.stages[part[0]].alive[part[1]]]
            loss.recovered = self.now
            self.losses.lose(loss, len(gone), sum(self._finished_before[part] for part in gone))
            self.losses.need(again)
        for stage, mask in zip(self.stages, plan.rerun):
            skipped = np.flatnonzero(~(mask | stage.done))
            if len(skipped):
                stage.done[skipped] = True
                self._record(["skipped", stage.stage.id, skipped.tolist()])
        self._finished_before = {}

    # -- progress -------------------------------------------------------------------------------

    def _advance(self) -> None:
        if not self._restricted:
            self._restrict()
        if self._in_limbo():
            return
        if self._lossy:
            self._recover()
        self._collect_adopted()
        self._relocate()
        if not self.finished:
            for stage in self.stages:
                if stage.state is not StageState.FINISHED and (stage.done.all() or self._ready(stage)):
                    self._run_stage(stage)
            self._enqueue_parked()
            self._launch_waiting()
            if self._is_stuck():
                self.placement.full.clear()  # there may be room again; if not, the next attempt tells
                self._launch_waiting()
            if self._backups and not self.placement.waiting:
                self._back_up()
        if self.finished and not self._announced:
            self._announced = True
            self._stop()
            self._out.append(Finished())

    def _launch_waiting(self) -> None:
        while (choice := self.placement.next()) is not None:
            self._launch(*choice)

    def _is_stuck(self) -> bool:
        """Whether tasks wait, nothing runs, and only full disks are left."""
        takers = {worker.node for worker in self.placement.workers.values() if not worker.draining}
        runs = any(not attempt.lacks for attempt in self._attempts.values())
        return bool(takers) and self.placement.waiting > 0 and not runs and takers <= self.placement.full

    def _in_limbo(self) -> bool:
        """Whether nodes of a Dask scheduler that died may still come back to the new one."""
        if self._limbo and self._limbo_ends is None and self.placement.workers:
            self._limbo_ends = self.now + LIMBO_SECONDS
        if self._limbo and self._limbo_ends is not None and self.now >= self._limbo_ends:
            for node in sorted(self._limbo):
                self.recovery.nodes_lost.append(node)
                self._lose_node(node, Cause.SCHEDULER)
            self._limbo.clear()
        return bool(self._limbo)

    def _ready(self, stage: StageRun) -> bool:
        waiting = stage.state is StageState.WAITING or not stage.resolved
        awaited = stage.stage.parents if waiting else self.lineage.sources[stage.stage.id]
        return all(self.stages[parent].state is StageState.FINISHED for parent in awaited)

    def _run_stage(self, stage: StageRun) -> None:
        if stage.state is StageState.WAITING:
            stage.state = StageState.RUNNING
            for worker in self.placement.workers.values():
                worker.pace = (1 + worker.pace) / 2  # what was slow may have become quick
        pending = stage.pending
        if len(pending) and not stage.announced:
            stage.announced = True
            self._resolve(stage)
            self._out.append(StageReady(self._program(stage)))
        if len(pending) and self.placement.threads:
            self._slice(stage, pending)
        if stage.done.all():
            stage.state = StageState.FINISHED
            rows = sum(result.rows for result in stage.results if result is not None)
            self._record(["stage", stage.stage.id, rows])
            self._keep(stage)
            self._out.append(StageFinished(stage.stage.id))
            sources = self.lineage.sources[stage.stage.id]
            for other in self.stages[: stage.stage.id + 1]:
                if other.state is StageState.FINISHED or other.stage.id in sources:
                    self._collect(other)

    def _resolve(self, stage: StageRun) -> None:
        exchange = stage.stage.exchange
        if exchange is None or exchange.boundaries_from is None or stage.resolved:
            return
        sampled = self.stages[exchange.boundaries_from].results
        samples = [result.sample for result in sampled if result is not None and result.sample is not None]
        ranges = exchange.partitioner
        assert isinstance(ranges, partitioners.RangePartitioner)
        boundaries = partitioners.range_boundaries(samples, ranges.keys, ranges.count)
        stage.resolve(boundaries)
        self._record_boundaries(stage)

    def _record_boundaries(self, stage: StageRun) -> None:
        boundaries = getattr(stage.exchange and stage.exchange.partitioner, "boundaries", None)
        if boundaries is not None:
            self._record(["boundaries", stage.stage.id, table_text(boundaries)])

    def _program(self, stage: StageRun) -> StageProgram:
        s = stage.stage
        exchange: Exchange | None = stage.exchange
        merges = stage.is_output or s.storage is not None
        return StageProgram(
            self.run, s.id, s.key, s.label, s.operator, s.schema, exchange, s.sink, s.sample, merges
        )

    def _slice(self, stage: StageRun, pending: np.ndarray) -> None:
        sizes, _ = input_sizes(stage, self.stages, {})
        runs = slice_partitions(pending, sizes[pending], self.placement.threads, fan_in(stage, self.stages))
        stage.queued[pending] = True
        for partitions in runs:
            self._parked.append(TaskRun(stage.stage.id, self._new_id(), partitions))
        stage.tasks_cut += len(runs)

    def _take_back(self) -> None:
        """Make the partitions of waiting tasks pending again, but for those of tasks under suspicion."""
        self._recut = False
        waiting, self._parked = [*self._parked, *self.placement.drain()], []
        for task in waiting:
            if task.deaths or task.company or task.fetch_failures or task.refusals:
                self._parked.append(task)
            else:
                self.stages[task.stage].queued[task.partitions] = False
                self.stages[task.stage].tasks_cut -= 1

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
        done = len(stage.finished_tasks)
        mean = stage.metrics.seconds / done if done else None
        for index, task in enumerate(tasks):
            task.weight = totals[index] + PARTITION_COST * len(task.partitions)
            task.seconds = 0.005 + totals[index] / ASSUMED_RATE if mean is None else mean
            task.local = {node: float(held[index]) for node, held in local.items() if held[index] > 0}

    def _launch(self, task: TaskRun, worker: WorkerSlots, backup: bool = False) -> None:
        stage = self.stages[task.stage]
        number = int(stage.attempts[task.partitions].max())
        stage.attempts[task.partitions] = number + 1
        stage.queued[task.partitions] = False
        stage.running[task.partitions] = True
        stage.attempts_launched += 1
        partitions = tuple(partition_input(stage, int(p), self.stages) for p in task.partitions)
        broadcast = broadcast_inputs(stage, task.partitions, self.stages)
        segments = [
            s for p in partitions for slot in p.slots.values() if isinstance(slot, tuple) for s in slot
        ]
        used = {s.node for s in segments} | {s.node for slot in broadcast.values() for s in slot}
        nodes = {node: addresses for node, addresses in self.placement.nodes().items() if node in used}
        record = Task(
            self.run, task.stage, task.id, number, partitions, broadcast, nodes,
            self._memory_bytes, self._quota_bytes, self.epoch,
        )  # fmt: skip
        attempt = Attempt(task, number, worker.address, record, self.now, backup)
        task.attempts[number] = attempt
        worker.attempts[task.id, number] = attempt
        self._tasks[task.id] = task
        self._attempts[task.id, number] = attempt
        self._out.append(Launch(record, worker.address))

    # -- backups --------------------------------------------------------------------------------

    def _back_up(self) -> None:
        """Let idle threads try what others are slow with."""
        for stage in self.stages:
            if stage.state is not StageState.RUNNING or not stage.finished_tasks:
                continue
            unit = unit_seconds(stage.finished_tasks, stage.tasks_cut)
            hopeless: set[int] = set()
            while unit is not None and (idle := self.placement.idle()):
                running = [
                    a
                    for a in self._attempts.values()
                    if a.task.id not in hopeless and self._may_be_backed_up(a, stage)
                ]
                views = [self._view(attempt, unit) for attempt in running]
                chosen = choose_backup(views, stage.backups, *self._backup_seconds(unit))
                if chosen is None:
                    break
                slow, view = running[chosen], views[chosen]
                self._find_slow(slow, view)
                if not self._inputs_alive(slow.task):  # it has read them
                    hopeless.add(slow.task.id)
                    continue
                others = [worker for worker in idle if worker.address != slow.worker]
                if not others:
                    break
                stage.backups += 1
                self.losses.backups += 1
                self._launch(slow.task, others[0], backup=True)

    def _may_be_backed_up(self, attempt: Attempt, stage: StageRun) -> bool:
        task = attempt.task
        alone = len(task.attempts) == 1 and not task.suspect
        return task.stage == stage.stage.id and alone and not attempt.stopped and not attempt.lacks

    def _inputs_alive(self, task: TaskRun) -> bool:
        chosen = self.lineage.select(task.stage, task.partitions.tolist())
        parents = self.lineage.parents(chosen, lambda stage: self.stages[stage].filled)
        return not any((mask & ~stage.alive).any() for mask, stage in zip(parents, self.stages))

    def _view(self, attempt: Attempt, unit: float) -> RunningAttempt:
        worker = self.placement.workers[attempt.worker]
        before = []
        for other in worker.attempts.values():
            if other is attempt:
                break
            before.append(other)
        ahead = (
            sum(other.task.seconds for other in before) / worker.threads
            if worker.threads <= len(before)
            else 0.0
        )
        fresh = unit * attempt.task.weight
        rate = recent_rate(attempt.samples, self.now, fresh)
        return RunningAttempt(self.now - attempt.started, ahead, fresh, attempt.share, rate)

    def _backup_seconds(self, unit: float) -> tuple[float, float]:
        """What backups have cost or will, and what all tasks have: in seconds."""
        backups = [a for a in self._attempts.values() if a.backup and not a.stopped]
        spent = self.losses.backup_seconds + sum(unit * a.task.weight for a in backups)
        running = sum(self.now - a.started for a in self._attempts.values())
        return spent, running + sum(stage.metrics.seconds for stage in self.stages)

    def _find_slow(self, attempt: Attempt, view: RunningAttempt) -> None:
        worker = self.placement.workers[attempt.worker]
        took = (view.elapsed - view.ahead) / max(attempt.share, 0.02) if attempt.share else view.left
        worker.pace = max(worker.pace, took / max(view.fresh, 1e-3))

    def _note_pace(self, attempt: Attempt, seconds: float) -> None:
        worker = self.placement.workers.get(attempt.worker)
        stage = self.stages[attempt.task.stage]
        unit = unit_seconds(stage.finished_tasks, stage.tasks_cut)
        if worker is not None and unit is not None and seconds > LEAST_TIMED:
            observed = seconds / max(unit * attempt.task.weight, LEAST_TIMED)
            worker.pace = max(1.0, 0.3 * worker.pace + 0.7 * observed)

    # -- recovery -------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Make pending again what is lost and still to be read, back to where inputs survive.

        Partitions that run now need nothing more: they finish, or come back naming what they lack.
        """
        self._lossy = False
        waiting = [a for a in self._attempts.values() if a.lacks and not a.stopped]
        needed = [~stage.taken & stage.is_output for stage in self.stages]
        for stage_id, partition in (part for attempt in waiting for part in attempt.lacks):
            needed[stage_id][partition] = True
        under_way = self._reruns_under_way()
        unfinished = [~(s.done | s.running | again) for s, again in zip(self.stages, under_way)]
        self._stop_useless(needed, unfinished)
        plan = self._plan(needed, unfinished)
        while self._need_samples(needed, [a | b for a, b in zip(plan.rerun, unfinished)]):
            plan = self._plan(needed, unfinished)
        self._give_up([again & ~rerun for again, rerun in zip(under_way, plan.rerun)])
        for stage, rerun, again in zip(self.stages, plan.rerun, under_way):
            partitions = np.flatnonzero(rerun & ~again)
            if not len(partitions):
                continue
            stage_id = stage.stage.id
            stage.done[partitions] = False
            stage.state = StageState.RUNNING
            self._announced = False
            self.losses.need(((stage_id, p), stage.size(p)) for p in partitions.tolist())
            self.recovery.partitions_rerun.extend((stage_id, p) for p in partitions.tolist())
            self._record(["rerun", stage_id, partitions.tolist()])
        self._parked.extend(self.placement.drain())

    def _plan(
        self, needed: list[np.ndarray], unfinished: list[np.ndarray], running: list[np.ndarray] | None = None
    ) -> Recovery:
        running = running or [stage.running for stage in self.stages]
        return plan_recovery(
            self.lineage,
            present=[stage.alive | under_way for stage, under_way in zip(self.stages, running)],
            needed=needed,
            unfinished=unfinished,
            segments=lambda stage: self.stages[stage].filled,
        )

    def _reruns_under_way(self, running: bool = False) -> list[np.ndarray]:
        """What was to be made again, and hasn't begun, or runs: it may no longer be needed."""
        masks = self.lineage.none()
        for stage_id, partition in self.losses.missing:
            stage = self.stages[stage_id]
            wanted = stage.running if running else ~(stage.running | stage.done)
            masks[stage_id][partition] = wanted[partition]
        return masks

    def _stop_useless(self, needed: list[np.ndarray], unfinished: list[np.ndarray]) -> None:
        """Cancel reruns that nobody would ask for now."""
        again = self._reruns_under_way(running=True)
        if not any(mask.any() for mask in again):
            return
        others = [stage.running & ~mask for stage, mask in zip(self.stages, again)]
        useless = [a & ~b for a, b in zip(again, self._plan(needed, unfinished, others).rerun)]
        for attempt in list(self._attempts.values()):
            task, stage = attempt.task, self.stages[attempt.task.stage]
            if not attempt.stopped and useless[task.stage][task.partitions].all():
                self._stop_attempt(attempt)
                if not task.attempts:
                    stage.running[task.partitions] = False
                    self._tasks.pop(task.id, None)
        self._give_up([mask & ~stage.running for mask, stage in zip(useless, self.stages)])

    def _give_up(self, masks: list[np.ndarray]) -> None:
        """Don't make again what nobody needs any more."""
        for stage, mask in zip(self.stages, masks):
            stage.done[mask] = True
            for partition in np.flatnonzero(mask).tolist():
                self.losses.returned((stage.stage.id, partition), self.now)
        if any(mask.any() for mask in masks):
            self._trim_waiting()

    def _need_samples(self, needed: list[np.ndarray], running: list[np.ndarray]) -> bool:
        """Add to what is needed the samples that boundaries will be made of; say whether there were any."""
        added = False
        for stage, mask in zip(self.stages, running):
            source = stage.stage.exchange.boundaries_from if stage.stage.exchange is not None else None
            if source is not None and mask.any() and not stage.resolved:
                absent = np.array([result is None for result in self.stages[source].results])
                added |= bool((absent & ~needed[source]).any())
                needed[source] |= absent
        return added

    # -- ends -----------------------------------------------------------------------------------

    def _collect(self, stage: StageRun) -> None:
        """Release the blocks that nobody will read again."""
        mask = stage.alive & stage.taken if stage.is_output else stage.alive.copy()
        if (mask.any() or stage.orphans) and self._is_read_no_more(stage.stage.id):
            self._release(stage, mask)

    def _is_read_no_more(self, stage_id: int) -> bool:
        """Whether all stages that read a stage are finished, and won't have to run again.

        They may have to as long as blocks of theirs are lost, and those who read them run: these have perhaps
        read them, and perhaps not.
        """
        settled: dict[int, bool] = {}
        for other in reversed(range(stage_id, len(self.stages))):
            stage = self.stages[other]
            read_no_more = all(settled[consumer] for consumer in self.lineage.consumers[other])
            whole = read_no_more or bool(stage.alive.all())
            settled[other] = stage.state is StageState.FINISHED and whole
        return all(settled[consumer] for consumer in self.lineage.consumers[stage_id])

    def _keep(self, stage: StageRun) -> None:
        """Let nodes keep what a stage has made, for later runs."""
        storage = stage.stage.storage
        reusable = self._reuse and stage.stage.sink is None and stage.stage.id not in self._indeterminate
        if storage is not None or reusable:
            found = (stage.block(int(p)) for p in np.flatnonzero(stage.alive))
            blocks = [block for block in found if block is not None and not block.is_kept]
            if blocks:
                self._out.append(Keep(blocks, storage))

    def _release(self, stage: StageRun, mask: np.ndarray) -> None:
        blocks = [b for p in np.flatnonzero(mask) if (b := stage.block(int(p))) is not None]
        if blocks or stage.orphans:
            partitions = [block.partition for block in blocks]
            stage.alive[partitions] = False
            gone = [*blocks, *stage.take_copies(partitions), *stage.orphans]
            stage.orphans = []
            self._give_back(gone)

    def _release_strays(self, stage: StageRun, results: Iterable[PartitionResult]) -> None:
        strays = [r.block for r in results if r.block is not None and not stage.has(r.block)]
        if strays:
            stage.orphans = [o for o in stage.orphans if not any(is_same(o, stray) for stray in strays)]
            self._give_back(strays)

    def _give_back(self, blocks: list[Block]) -> None:
        """Delete blocks; there is room again where they were."""
        self.placement.full -= {block.node for block in blocks}
        self._out.append(Release([block for block in blocks if not block.is_kept]))

    def _collect_adopted(self) -> None:
        """Release what came back though nobody will read it."""
        for stage_id in sorted(self._adopted):
            if self.stages[stage_id].state is StageState.FINISHED:
                self._collect(self.stages[stage_id])
        self._adopted.clear()

    def _stop(self) -> None:
        for attempt in list(self._attempts.values()):
            if not attempt.stopped:
                self._stop_attempt(attempt)
        for task in (*self._tasks.values(), *self._parked, *self.placement.drain()):
            self.stages[task.stage].running[task.partitions] = False
            self.stages[task.stage].queued[task.partitions] = False
        self._tasks.clear()
        self._parked.clear()
        if self.finished:
            self._give_up(self._reruns_under_way())

    def _stop_attempt(self, attempt: Attempt) -> None:
        """Cancel an attempt; it holds its thread until it answers."""
        attempt.stopped = True
        attempt.lacks = frozenset()
        attempt.task.attempts.pop(attempt.number, None)
        self._out.append(Cancel(self._name(attempt), attempt.worker))

    def _fail(self, error: BaseException) -> None:
        self._stop()
        self.error = error
        self._out.append(Failed(error))

    def _ended(self, task_id: int, number: int) -> Attempt | None:
        """An attempt is over; return it if it was known, stopped or not."""
        attempt = self._attempts.pop((task_id, number), None)
        if attempt is not None:
            attempt.task.attempts.pop(number, None)
            self.placement.remove(attempt)
        return attempt

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _name(self, attempt: Attempt) -> str:
        return attempt.record.name

    def _record(self, record: list[object]) -> None:
        self._out.append(Record([record]))
