"""Where tasks of a device go, and where others go: decided by events alone, without any device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater.errors import ClusterError
from headwater.ops.kernel import Kernel
from headwater.ops.partitioner import HashPartitioner
from headwater.ops.source import Source, Split
from headwater.planner.plan import Exchange, PhysicalPlan, ScanLeaf, ShuffleLeaf, Stage, Step
from headwater.runtime.devices.assignment import Binding, bind
from headwater.runtime.driver import Driver
from headwater.runtime.inline import InlineExecutor
from headwater.runtime.placement import Attempt, Placement, TaskRun, WorkerSlots
from headwater.runtime.scheduler import Scheduler
from headwater.runtime.scheduler_events import Cause, Launch, TaskFinished, WorkerJoined, WorkerLeft
from headwater.runtime.task import Block, Metrics, PartitionResult, Task, TaskResult
from headwater.session import plan

SCHEMA = pa.schema([("x", pa.int64())])


def scan(stage_id: int, count: int, exchange: Exchange | None = None) -> Stage:
    leaf = ScanLeaf(0, Source(), ("x",), None, None, SCHEMA)
    splits = tuple(Split(number, None, 64 << 20) for number in range(count))
    return Stage(stage_id, f"key{stage_id}", "scan", leaf, count, SCHEMA, {0: splits}, exchange)


def reduce(stage_id: int, parent: int, count: int) -> Stage:
    step = Step(Kernel(), (ShuffleLeaf(0, parent, SCHEMA),), SCHEMA)
    return Stage(stage_id, f"key{stage_id}", "reduce", step, count, SCHEMA)


def result_of(task: Task, stage: Stage, node: str, worker: str) -> TaskResult:
    count = stage.exchange.count if stage.exchange else 1
    offsets = np.cumsum([8] + [100] * count)
    rows, done = np.full(count, 10), []
    for item in task.partitions:
        name = f"s{task.stage}-p{item.index}"
        block = Block(task.stage, item.index, task.attempt, node, name, offsets, rows, int(offsets[-1]), "f")
        done.append(PartitionResult(item.index, int(rows.sum()), "f", block))
    return TaskResult(task.stage, task.id, task.attempt, node, worker, tuple(done), Metrics(seconds=0.01))


def placed(workers: dict[str, bool], tasks: list[TaskRun], threads: int = 1) -> list[tuple[int, str]]:
    """Give tasks to workers, of which some have a GPU, until nothing can start; (task, worker) in order."""
    placement = Placement()
    for address, gpu in workers.items():
        placement.join(WorkerSlots(address, "node", threads, "", gpu=gpu))
    for task in tasks:
        placement.add(task)
    chosen = []
    while (choice := placement.next()) is not None:
        task, worker = choice
        worker.attempts[task.id, 0] = Attempt(task, 0, worker.address, record=None)  # type: ignore[arg-type]
        chosen.append((task.id, worker.address))
    return chosen


def task(number: int, device: str, **more) -> TaskRun:
    return TaskRun(0, number, np.array([number]), device=device, **more)


def test_tasks_of_a_device_go_only_to_workers_with_one():
    tasks = [task(n, "gpu", local={"node": 1.0}) for n in range(6)]
    chosen = placed({"a": False, "b": True, "c": True}, tasks)
    assert {worker for _, worker in chosen} == {"b", "c"}
    assert placed({"a": False}, tasks) == []


def test_other_tasks_go_to_workers_without_a_device_first():
    workers = {"a": True, "b": False, "c": False}
    assert [worker for _, worker in placed(workers, [task(n, "cpu") for n in range(3)])] == ["b", "c", "a"]


def test_a_worker_with_a_device_takes_first_what_nobody_else_can():
    chosen = placed({"a": True, "b": False}, [task(0, "cpu"), task(1, "cpu"), task(2, "gpu")])
    assert dict(chosen)[2] == "a"
    assert chosen[0] == (0, "b")


def test_a_slow_device_is_used_if_there_is_no_other():
    placement = Placement()
    placement.join(WorkerSlots("a", "node", 8, ""))
    placement.join(WorkerSlots("b", "node", 1, "", gpu=True, pace=50.0))
    placement.add(task(0, "gpu"))
    choice = placement.next()
    assert choice is not None
    assert choice[1].address == "b"


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_suspect_task_runs_alone_where_its_device_is(kind: str):
    chosen = placed({"a": False, "b": True}, [task(0, kind, company=1), task(1, "gpu"), task(2, "cpu")])
    assert len(chosen) >= 2
    assert all(worker == "b" for number, worker in chosen if number == 1 or (number == 0 and kind == "gpu"))


def device_plan() -> PhysicalPlan:
    stages = (scan(0, 4, Exchange(HashPartitioner(("x",), 3))), replace(reduce(1, 0, 3), device="gpu"))
    return PhysicalPlan(stages, {"out": 1})


def finish(scheduler: Scheduler, launches: list[Launch], nodes: dict[str, str]) -> list[Launch]:
    """Answer launches with results; returns those that follow."""
    out = []
    for launch in launches:
        stage = scheduler.plan.stages[launch.task.stage]
        result = result_of(launch.task, stage, nodes[launch.worker], launch.worker)
        out += [made for made in scheduler.handle(TaskFinished(result)) if isinstance(made, Launch)]
    return out


def test_a_run_waits_for_a_worker_with_a_device_and_goes_on_when_one_comes():
    scheduler = Scheduler(device_plan(), "r")
    nodes = {"a": "n1", "b": "n1", "c": "n1"}
    made = scheduler.handle(WorkerJoined("a", "n1"), WorkerJoined("b", "n1", gpu=True))
    launches = [m for m in made if isinstance(m, Launch)]
    while launches and launches[0].task.stage == 0:
        launches = finish(scheduler, launches, nodes)
    assert {launch.worker for launch in launches} == {"b"}
    assert not scheduler.waits_for_gpu
    made = scheduler.handle(WorkerLeft("b", Cause.DIED))
    assert not [m for m in made if isinstance(m, Launch)]
    assert scheduler.waits_for_gpu == "reduce"
    made = scheduler.handle(WorkerJoined("c", "n1", gpu=True))
    assert not scheduler.waits_for_gpu
    launches = [m for m in made if isinstance(m, Launch)]
    assert {launch.worker for launch in launches} == {"c"}
    while launches:
        launches = finish(scheduler, launches, nodes)
    assert scheduler.finished


def test_no_device_from_the_start_is_waited_for_too():
    scheduler = Scheduler(device_plan(), "r")
    launches = [m for m in scheduler.handle(WorkerJoined("a", "n1")) if isinstance(m, Launch)]
    while launches:
        launches = finish(scheduler, launches, {"a": "n1"})
    assert scheduler.waits_for_gpu == "reduce"
    assert not scheduler.finished


def test_processes_share_devices_in_turn():
    assert bind(5, ["0", "1"])[4] == Binding("0", 3)
    assert bind(None, ["0"]) == [Binding("0"), Binding(), Binding(), Binding()]
    assert [b.device for b in bind(None, list("012345"))] == list("012345")
    assert bind(2, []) == [Binding(), Binding()]


def test_a_run_that_finds_no_device_in_time_fails_and_says_so():
    executor = InlineExecutor(device=False)
    sources = hw.range(10, partitions=2)
    physical = plan({"rows": sources})
    stages = tuple(replace(stage, device="gpu") for stage in physical.stages)
    driver = Driver(replace(physical, stages=stages), executor, worker_timeout=0.2)
    with pytest.raises(
        ClusterError, match=r"no worker with a GPU for 0 seconds, and scan range.* waits for one"
    ):
        driver.run()
    executor.close()
