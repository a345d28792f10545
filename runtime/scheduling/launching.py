"""Launching: partitions that have to be made become tasks, wait for a worker, and begin there."""

from __future__ import annotations

import numpy as np

from ..placement import Attempt, TaskRun, WorkerSlots
from ..scheduler_events import Launch
from ..slicing import PARTITION_COST, slice_partitions
from ..stage_run import StageRun, StageState, broadcast_inputs, fan_in, input_sizes, partition_input
from ..task import Task
from .run_state import RunState

#: bytes of input that a worker processes in a second, until tasks of the stage have been measured
ASSUMED_RATE = 200e6


def cut_tasks(state: RunState, stage: StageRun, pending: np.ndarray) -> None:
    """Group partitions that nobody is at into tasks, one worth a launch each."""
    sizes, _ = input_sizes(stage, state.stages, {})
    device = stage.stage.device
    threads = state.placement.threads_for(device)
    runs = slice_partitions(pending, sizes[pending], threads, fan_in(stage, state.stages))
    stage.queued[pending] = True
    for partitions in runs:
        state.parked.append(
            TaskRun(stage.stage.id, state.new_id(), partitions, long=stage.trains, device=device)
        )
    stage.tasks_cut += len(runs)


def take_back(state: RunState) -> None:
    """Make the partitions of waiting tasks pending again, to be cut for other workers than before.

    Tasks under suspicion stay as they are.
    """
    state.recut = False
    waiting, state.parked = [*state.parked, *state.placement.drain()], []
    for task in waiting:
        if task.deaths or task.company or task.fetch_failures or task.refusals:
            state.parked.append(task)
        else:
            state.stages[task.stage].queued[task.partitions] = False
            state.stages[task.stage].tasks_cut -= 1


def enqueue_parked(state: RunState) -> None:
    """Let the parked tasks of ready stages wait for workers, with their localities as of now."""
    by_stage: dict[int, list[TaskRun]] = {}
    for task in state.parked:
        by_stage.setdefault(task.stage, []).append(task)
    state.parked = []
    for stage_id, tasks in sorted(by_stage.items()):
        stage = state.stages[stage_id]
        if is_ready(state, stage):
            _localise(state, stage, tasks)
            for task in tasks:
                state.placement.add(task)
        else:
            state.parked.extend(tasks)


def _localise(state: RunState, stage: StageRun, tasks: list[TaskRun]) -> None:
    sizes, by_node = input_sizes(stage, state.stages, state.placement.hosts())
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


def launch_waiting(state: RunState) -> None:
    """Give waiting tasks to workers with a free thread."""
    while (choice := state.placement.next()) is not None:
        launch(state, *choice)


def launch(state: RunState, task: TaskRun, worker: WorkerSlots, backup: bool = False) -> None:
    """Begin an attempt at a task on a worker."""
    stage = state.stages[task.stage]
    number = int(stage.attempts[task.partitions].max())
    stage.attempts[task.partitions] = number + 1
    stage.queued[task.partitions] = False
    stage.running[task.partitions] = True
    stage.attempts_launched += 1
    partitions = tuple(partition_input(stage, int(p), state.stages) for p in task.partitions)
    broadcast = broadcast_inputs(stage, task.partitions, state.stages)
    segments = [s for p in partitions for slot in p.slots.values() if isinstance(slot, tuple) for s in slot]
    used = {s.node for s in segments} | {s.node for slot in broadcast.values() for s in slot}
    nodes = {node: addresses for node, addresses in state.placement.nodes().items() if node in used}
    record = Task(
        state.run, task.stage, task.id, number, partitions, broadcast, nodes,
        state.memory_bytes, state.quota_bytes, state.epoch,
    )  # fmt: skip
    attempt = Attempt(task, number, worker.address, record, state.now, backup)
    task.attempts[number] = attempt
    worker.attempts[task.id, number] = attempt
    state.tasks[task.id] = task
    state.attempts[task.id, number] = attempt
    state.out.append(Launch(record, worker.address))


def is_stuck(state: RunState) -> bool:
    """Whether tasks wait, nothing runs, and only full disks are left."""
    takers = {worker.node for worker in state.placement.workers.values() if not worker.draining}
    runs = any(not attempt.lacks for attempt in state.attempts.values())
    return bool(takers) and state.placement.waiting > 0 and not runs and takers <= state.placement.full


def is_ready(state: RunState, stage: StageRun) -> bool:
    """Whether all that a stage waits for is finished."""
    waiting = stage.state is StageState.WAITING or not stage.resolved
    awaited = stage.parents if waiting else state.lineage.sources[stage.stage.id]
    return all(state.stages[parent].state is StageState.FINISHED for parent in awaited)
