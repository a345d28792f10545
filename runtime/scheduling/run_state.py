"""Run state: what the scheduler knows of a run, and the steps that several of its parts take."""

from __future__ import annotations

import numpy as np

from ...planner.plan import PhysicalPlan
from ..losses import Losses
from ..placement import Attempt, Placement, TaskRun
from ..scheduler_events import Cancel, Failed, Instruction, Record, RecoveryStats
from ..stage_inputs import indeterminate_stages, lineage_of
from ..stage_run import StageRun, StageState
from ..tables import table_text

#: attempts that a driver may make at a partition; those of the next driver are numbered from there
EPOCH_ATTEMPTS = 10_000


class RunState:
    """The state of one run, shared by the parts of the scheduler.

    Args:
        plan: what to run.
        run: the run's id.
        memory_bytes: how much memory a task may hold.
        quota_bytes: bound of each node's scratch folder; None is the disk's own.
        epoch: number of the driver among those that the run has had.
        reuse: whether nodes shall keep results for later runs.

    Attributes:
        now: seconds of the run, as of the last `Tick`.
        losses: the ledger of what died, and of backups.
        recovery: what failures cost so far.
        error: why the run failed, once it did.
        lineage: what every partition is made from.
        stages: how far each stage is, by id.
        outputs: those that the caller wants.
        readers: ids of the stages that wait for each stage, for its blocks or its samples, ascending.
        placement: workers, and the tasks that wait for them.
        indeterminate: stages whose bytes may vary.
        tasks: those with a living attempt, by id.
        attempts: those that hold a thread, cancelled ones that haven't answered included.
        parked: tasks that aren't placed yet.
        recut: whether waiting tasks are to be cut anew, for other workers than before.
        lossy: whether something may have been lost that has to be made again.
        announced: whether the run was said to be finished.
        out: the instructions so far.
    """

    def __init__(
        self,
        plan: PhysicalPlan,
        run: str,
        memory_bytes: int,
        quota_bytes: int | None,
        epoch: int,
        reuse: bool,
    ):
        self.plan = plan
        self.run = run
        self.memory_bytes, self.quota_bytes = memory_bytes, quota_bytes
        self.epoch = epoch
        self.reuse = reuse
        self.now = 0.0
        self.losses = Losses()
        self.recovery = RecoveryStats()
        self.error: BaseException | None = None
        outputs = set(plan.outputs.values())
        self.lineage = lineage_of(plan)
        self.stages = [StageRun(stage, stage.id in outputs) for stage in plan.stages]
        self.outputs = [stage for stage in self.stages if stage.is_output]
        self.readers: list[list[int]] = [[] for _ in self.stages]
        for stage in self.stages:
            for parent in stage.parents:
                self.readers[parent].append(stage.stage.id)
        for stage in self.stages:
            stage.attempts[:] = epoch * EPOCH_ATTEMPTS
        self.placement = Placement()
        self.indeterminate = indeterminate_stages(plan)
        self.tasks: dict[int, TaskRun] = {}
        self.attempts: dict[tuple[int, int], Attempt] = {}
        self.parked: list[TaskRun] = []
        self.recut = False
        self.lossy = False
        self.announced = False
        self.out: list[Instruction] = []
        self._next_id = 0

    @property
    def finished(self) -> bool:
        """Whether all outputs are there, as far as the caller hasn't taken them."""
        return self.error is None and all(stage.state is StageState.FINISHED for stage in self.outputs)

    def stop(self) -> None:
        """Cancel all attempts, and forget the tasks that wait."""
        for attempt in list(self.attempts.values()):
            if not attempt.stopped:
                self.stop_attempt(attempt)
        for task in (*self.tasks.values(), *self.parked, *self.placement.drain()):
            self.stages[task.stage].running[task.partitions] = False
            self.stages[task.stage].queued[task.partitions] = False
        self.tasks.clear()
        self.parked.clear()
        if self.finished:
            self.give_up(self.reruns_under_way())

    def stop_attempt(self, attempt: Attempt) -> None:
        """Cancel an attempt; it holds its thread until it answers."""
        attempt.stopped = True
        attempt.lacks = frozenset()
        attempt.task.attempts.pop(attempt.number, None)
        self.out.append(Cancel(attempt.record.name, attempt.worker))

    def fail(self, error: BaseException) -> None:
        """Give the run up."""
        self.stop()
        self.error = error
        self.out.append(Failed(error))

    def ended(self, task_id: int, number: int) -> Attempt | None:
        """An attempt is over; return it if it was known, stopped or not."""
        attempt = self.attempts.pop((task_id, number), None)
        if attempt is not None:
            attempt.task.attempts.pop(number, None)
            self.placement.remove(attempt)
        return attempt

    def new_id(self) -> int:
        """An id for a task."""
        self._next_id += 1
        return self._next_id - 1

    def record(self, record: list[object]) -> None:
        """Have something written to the journal."""
        self.out.append(Record([record]))

    def record_boundaries(self, stage: StageRun) -> None:
        """Have the ranges by which a stage cuts its output written to the journal, if it has any."""
        boundaries = getattr(stage.exchange and stage.exchange.partitioner, "boundaries", None)
        if boundaries is not None:
            self.record(["boundaries", stage.stage.id, table_text(boundaries)])

    def trim_waiting(self) -> None:
        """Take out of tasks that wait for a worker what need not be made."""
        tasks, self.parked = [*self.parked, *self.placement.drain()], []
        for task in tasks:
            done = self.stages[task.stage].done[task.partitions]
            self.stages[task.stage].queued[task.partitions[done]] = False
            if not done.all():
                task.partitions = task.partitions[~done]
                self.parked.append(task)

    def give_up(self, masks: list[np.ndarray]) -> None:
        """Don't make again what nobody needs any more."""
        for stage, mask in zip(self.stages, masks):
            stage.done[mask] = True
            for partition in np.flatnonzero(mask).tolist():
                self.losses.returned((stage.stage.id, partition), self.now)
        if any(mask.any() for mask in masks):
            self.trim_waiting()

    def reruns_under_way(self, running: bool = False) -> list[np.ndarray]:
        """What was to be made again, and hasn't begun, or runs: it may no longer be needed."""
        masks = self.lineage.none()
        for stage_id, partition in self.losses.missing:
            stage = self.stages[stage_id]
            wanted = stage.running if running else ~(stage.running | stage.done)
            masks[stage_id][partition] = wanted[partition]
        return masks
