"""The scheduler, fed with events by hand and by a simulated cluster."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import NonDeterministicError, RunFailedError, UserFunctionError
from headwater.ops import partitioner as partitioners
from headwater.ops.kernel import Kernel
from headwater.ops.map_batches import MapBatchesKernel
from headwater.ops.partitioner import HashPartitioner, KeySample, RangePartitioner
from headwater.ops.sort import SortKey
from headwater.ops.source import Source, Split
from headwater.planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    Exchange,
    PhysicalPlan,
    ScanLeaf,
    ShuffleLeaf,
    Stage,
    Step,
    UnionStep,
    leaves_of,
)
from headwater.runtime.placement import Attempt, Placement, TaskRun, WorkerSlots
from headwater.runtime.scheduler import Scheduler
from headwater.runtime.scheduler_events import (
    BlocksLost,
    Cancel,
    Demand,
    Failed,
    FailureKind,
    Finished,
    Launch,
    OutputTaken,
    Record,
    Release,
    StageFinished,
    StageReady,
    TaskFailed,
    TaskFinished,
    WorkerJoined,
    WorkerLeft,
)
from headwater.runtime.slicing import slice_partitions
from headwater.runtime.stage_inputs import leaf_ranges
from headwater.runtime.task import Block, Metrics, PartitionResult, Task, TaskResult

SCHEMA = pa.schema([("x", pa.int64())])
MB = 1 << 20


def scan(stage_id: int, sizes: list[int], exchange: Exchange | None = None, hosts=(), **more) -> Stage:
    leaf = ScanLeaf(0, Source(), ("x",), None, None, SCHEMA)
    splits = tuple(Split(i, None, size, hosts[i] if hosts else ()) for i, size in enumerate(sizes))
    return Stage(stage_id, f"key{stage_id}", "scan", leaf, len(sizes), SCHEMA, {0: splits}, exchange, **more)


def narrow(stage_id: int, parent: int, count: int, exchange: Exchange | None = None) -> Stage:
    step = Step(Kernel(), (BlockLeaf(0, parent, SCHEMA),), SCHEMA)
    return Stage(stage_id, f"key{stage_id}", "map", step, count, SCHEMA, exchange=exchange)


def reduce(stage_id: int, parent: int, count: int, exchange: Exchange | None = None) -> Stage:
    step = Step(Kernel(), (ShuffleLeaf(0, parent, SCHEMA),), SCHEMA)
    return Stage(stage_id, f"key{stage_id}", "reduce", step, count, SCHEMA, exchange=exchange)


def hashed(count: int) -> Exchange:
    return Exchange(HashPartitioner(("x",), count))


def map_reduce(maps: int = 4, reduces: int = 3, size: int = 64 * MB) -> PhysicalPlan:
    return PhysicalPlan((scan(0, [size] * maps, hashed(reduces)), reduce(1, 0, reduces)), {"out": 1})


def result_of(task: Task, stage: Stage, node: str, worker: str, sizes=lambda p, s: 100) -> TaskResult:
    segments = stage.exchange.count if stage.exchange else 1
    done = []
    for item in task.partitions:
        lengths = [sizes(item.index, s) for s in range(segments)]
        offsets = np.cumsum([8, *lengths])
        name = f"s{task.stage}-p{item.index}-a{task.attempt}"
        rows = np.array([n // 10 for n in lengths])
        block = Block(
            task.stage,
            item.index,
            task.attempt,
            node,
            name,
            offsets,
            rows,
            int(offsets[-1]),
            f"f{item.index}",
        )
        sample = KeySample(int(rows.sum()), pa.table({"x": [item.index]})) if stage.sample else None
        done.append(PartitionResult(item.index, int(rows.sum()), block.fingerprint, block, (), sample))
    metrics = Metrics(seconds=0.01, rows_out=sum(p.rows for p in done))
    return TaskResult(task.stage, task.id, task.attempt, node, worker, tuple(done), metrics)


def identity(block: Block) -> tuple[int, int, int]:
    return (block.stage, block.partition, block.attempt)


@dataclass
class Cluster:
    """Runs a plan without running it: remembers what the scheduler asked for, answers on demand.

    Checks that no task reads a block that was never made, was released, or whose node is gone unseen.
    """

    plan: PhysicalPlan
    sizes: object = lambda p, s: 100
    streamed: tuple[int, ...] = ()
    workers: dict[str, str] = field(default_factory=dict)
    log: list = field(default_factory=list)
    running: dict[str, Launch] = field(default_factory=dict)
    blocks: dict[tuple[int, int, int], str] = field(default_factory=dict)
    released: list = field(default_factory=list)
    computed: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self):
        self.scheduler = Scheduler(self.plan, "run", streamed=self.streamed)

    def feed(self, *events):
        instructions = self.scheduler.handle(*events)
        for instruction in instructions:
            self.log.append(instruction)
            if isinstance(instruction, Launch):
                assert instruction.worker in self.workers
                assert instruction.task.name not in self.running
                self.running[instruction.task.name] = instruction
            elif isinstance(instruction, Cancel):
                self.running.pop(instruction.name, None)
            elif isinstance(instruction, Release):
                self.released += [identity(block) for block in instruction.blocks]
                assert len(set(self.released)) == len(self.released), "released twice"
                for block in instruction.blocks:
                    self.blocks.pop(identity(block), None)
        return instructions

    def join(self, *pairs: tuple[str, str], threads: int = 1):
        self.workers.update(pairs)
        return self.feed(*(WorkerJoined(worker, node, threads, host=node) for worker, node in pairs))

    def kill(self, worker: str):
        node = self.workers.pop(worker)
        if node not in self.workers.values():
            self.blocks = {key: where for key, where in self.blocks.items() if where != node}
        return self.feed(WorkerLeft(worker))

    def missing(self, task: Task) -> tuple[tuple[int, int, int], ...]:
        slots = [slot for item in task.partitions for slot in item.slots.values() if isinstance(slot, tuple)]
        keys = [
            (s.stage, s.partition, s.attempt) for slot in (*slots, *task.broadcast.values()) for s in slot
        ]
        return tuple(dict.fromkeys(key for key in keys if key not in self.blocks))

    def result(self, launch: Launch) -> TaskResult:
        stage = self.plan.stages[launch.task.stage]
        return result_of(launch.task, stage, self.workers[launch.worker], launch.worker, self.sizes)

    def answer(self, name: str):
        """Let one running attempt end: with a result, or naming the inputs that are gone."""
        launch = self.running.pop(name)
        lost = self.missing(launch.task)
        if lost:
            assert not any(key in self.released for key in lost), "a consumer's input was released"
            task = launch.task
            failed = TaskFailed(
                task.stage, task.id, task.attempt, launch.worker, FailureKind.FETCH, OSError("gone"), lost
            )
            return self.feed(failed)
        result = self.result(launch)
        for partition in result.partitions:
            self.blocks[identity(partition.block)] = result.node
            key = (result.stage, partition.index)
            self.computed[key] = self.computed.get(key, 0) + 1
        return self.feed(TaskFinished(result))

    def run(self, most: int = 10_000):
        while self.running and most:
            self.answer(next(iter(self.running)))
            most -= 1
        return self

    def of(self, kind) -> list:
        return [instruction for instruction in self.log if isinstance(instruction, kind)]

    def finished(self) -> bool:
        return bool(self.of(Finished))


def test_clean_run_computes_each_partition_once_and_keeps_only_the_output():
    cluster = Cluster(map_reduce())
    cluster.join(("w1", "a"), ("w2", "a"))
    cluster.run()
    assert cluster.finished()
    assert cluster.computed == {(0, p): 1 for p in range(4)} | {(1, p): 1 for p in range(3)}
    assert sorted(cluster.released) == [(0, p, 0) for p in range(4)]
    assert set(cluster.blocks) == {(1, p, 0) for p in range(3)}
    assert [i.stage for i in cluster.of(StageFinished)] == [0, 1]
    assert [i.program.stage for i in cluster.of(StageReady)] == [0, 1]


def test_reducer_reads_its_segment_of_every_map_in_order_and_skips_empty_ones():
    sizes = lambda p, s: 0 if (p, s) == (2, 1) else 10 * (p + 1) + s  # noqa: E731
    cluster = Cluster(map_reduce(4, 3), sizes)
    cluster.join(("w1", "a"), threads=4)
    cluster.run()
    reducers = {
        i.index: i for launch in cluster.of(Launch) if launch.task.stage == 1 for i in launch.task.partitions
    }
    assert [s.partition for s in reducers[0].slots[0]] == [0, 1, 2, 3]
    assert [s.partition for s in reducers[1].slots[0]] == [0, 1, 3]
    assert [(s.offset, s.length) for s in reducers[2].slots[0]] == [
        (8 + sizes(p, 0) + sizes(p, 1), sizes(p, 2)) for p in range(4)
    ]


def test_records_come_before_what_depends_on_them():
    cluster = Cluster(map_reduce())
    cluster.join(("w1", "a"))
    for name in list(cluster.running):
        instructions = cluster.answer(name)
        kinds = [type(i) for i in instructions]
        assert kinds[0] is Record
        assert instructions[0].records[0][0] == "task"


def test_tasks_go_to_the_node_with_most_of_their_bytes():
    plan = PhysicalPlan((scan(0, [64 * MB] * 6), narrow(1, 0, 6)), {"out": 1})
    cluster = Cluster(plan, lambda p, s: 64 * MB)
    cluster.join(("w1", "a"), ("w2", "b"))
    cluster.run()
    where = {block[1]: node for block, node in cluster.blocks.items() if block[0] == 1}
    made = {
        partition.index: cluster.workers[launch.worker]
        for launch in cluster.of(Launch)
        if launch.task.stage == 0
        for partition in launch.task.partitions
    }
    assert where == made


def test_splits_with_hosts_are_read_there():
    hosts = [("a",), ("b",), ("b",), ("a",)]
    plan = PhysicalPlan((scan(0, [64 * MB] * 4, hosts=hosts),), {"out": 0})
    cluster = Cluster(plan)
    cluster.join(("w1", "a"), ("w2", "b"))
    placed = {i.task.partitions[0].index: cluster.workers[i.worker] for i in cluster.of(Launch)}
    assert placed == {0: "a", 1: "b", 2: "b", 3: "a"}


def test_idle_worker_steals_when_the_bytes_cost_less_than_the_wait():
    plan = PhysicalPlan((scan(0, [64 * MB] * 8), narrow(1, 0, 8)), {"out": 1})
    cluster = Cluster(plan, lambda p, s: 8 * MB)
    cluster.join(("w1", "a"))
    while any(launch.task.stage == 0 for launch in cluster.running.values()):
        cluster.answer(next(iter(cluster.running)))
    cluster.join(("w2", "b"))
    assert any(launch.worker == "w2" for launch in cluster.running.values())


def test_window_is_one_more_than_threads():
    cluster = Cluster(map_reduce(20))
    cluster.join(("w1", "a"), ("w2", "b"), threads=2)
    counts = [sum(i.worker == w for i in cluster.running.values()) for w in ("w1", "w2")]
    assert counts == [3, 3]


def test_lost_worker_of_a_living_node_costs_only_its_running_tasks():
    cluster = Cluster(map_reduce(6))
    cluster.join(("w1", "a"), ("w2", "a"))
    cluster.answer(next(name for name, i in cluster.running.items() if i.worker == "w1"))
    lost = [i.task for i in cluster.running.values() if i.worker == "w1"]
    cluster.kill("w1")
    cluster.run()
    again = [i.task for i in cluster.of(Launch) if i.task.attempt > 0]
    assert sorted(t.id for t in again) == sorted(t.id for t in lost)
    assert all(count == 1 for count in cluster.computed.values())
    assert cluster.finished()
    assert cluster.scheduler.recovery.nodes_lost == []


def test_lost_node_reruns_exactly_the_maps_it_held():
    cluster = Cluster(map_reduce(6, 6))
    cluster.join(("w1", "a"), ("w2", "b"))
    while any(i.task.stage == 0 for i in cluster.running.values()):
        cluster.answer(next(name for name, i in cluster.running.items() if i.task.stage == 0))
    held = {key[1] for key, node in cluster.blocks.items() if node == "b" and key[0] == 0}
    cluster.kill("w2")
    cluster.run()
    assert cluster.finished()
    assert {p for (stage, p), count in cluster.computed.items() if stage == 0 and count == 2} == held
    assert sorted(cluster.scheduler.recovery.partitions_rerun) == [(0, p) for p in sorted(held)]
    assert all(cluster.computed[1, p] == 1 for p in range(6))


def test_rerun_goes_back_to_released_inputs_and_only_those_needed():
    plan = PhysicalPlan((scan(0, [64 * MB] * 4), narrow(1, 0, 4), narrow(2, 1, 4)), {"out": 2})
    cluster = Cluster(plan, lambda p, s: 64 * MB)
    cluster.join(("w1", "a"), ("w2", "b"))
    cluster.run()
    assert cluster.finished()
    lost = {key[1] for key, node in cluster.blocks.items() if node == "b"}
    assert 0 < len(lost) < 4
    cluster.log.clear()
    cluster.kill("w2")
    cluster.run()
    assert cluster.finished()
    twice = {key for key, count in cluster.computed.items() if count == 2}
    assert twice == {(stage, p) for stage in range(3) for p in lost}
    assert set(cluster.blocks) == {(2, p, int(p in lost)) for p in range(4)}


def test_late_result_of_a_fenced_attempt_changes_nothing_and_its_blocks_go():
    cluster = Cluster(map_reduce(2, 1))
    cluster.join(("w1", "a"), ("w2", "a"))
    late = next(i for i in cluster.running.values() if i.worker == "w1")
    cluster.kill("w1")
    stray = result_of(late.task, cluster.plan.stages[0], "a", "w1")
    instructions = cluster.feed(TaskFinished(stray))
    assert [type(i) for i in instructions] == [Release]
    assert [identity(b) for b in instructions[0].blocks] == [(0, late.task.partitions[0].index, 0)]
    cluster.run()
    assert cluster.finished()


def test_same_result_twice_releases_nothing():
    cluster = Cluster(map_reduce(3, 1))
    cluster.join(("w1", "a"))
    result = cluster.result(next(iter(cluster.running.values())))
    cluster.answer(next(iter(cluster.running)))
    assert cluster.feed(TaskFinished(result)) == []


def test_fetch_failure_makes_the_named_blocks_again_then_the_task():
    cluster = Cluster(map_reduce(4, 1))
    cluster.join(("w1", "a"), ("w2", "b"))
    while any(i.task.stage == 0 for i in cluster.running.values()):
        cluster.answer(next(iter(cluster.running)))
    del cluster.blocks[0, 2, 0]
    cluster.run()
    assert cluster.finished()
    assert {key for key, count in cluster.computed.items() if count == 2} == {(0, 2)}
    assert cluster.of(Launch)[-1].task.attempt == 1


def test_stale_report_of_a_lost_block_is_ignored():
    cluster = Cluster(map_reduce(4, 1))
    cluster.join(("w1", "a"))
    cluster.run(4)
    cluster.feed(BlocksLost(((0, 1, 7),)))
    assert cluster.scheduler.recovery.blocks_lost == 0


def test_unreadable_inputs_end_the_run_after_some_attempts():
    cluster = Cluster(PhysicalPlan((scan(0, [MB]), narrow(1, 0, 1)), {"out": 1}))
    cluster.join(("w1", "a"))
    for _ in range(100):
        if cluster.of(Failed):
            break
        launch = next(iter(cluster.running.values()))
        if launch.task.stage == 1:
            cluster.blocks.clear()
        cluster.answer(launch.task.name)
    with pytest.raises(RunFailedError, match="map: partition 0: inputs could not be read"):
        raise cluster.of(Failed)[0].error


def test_poisonous_task_ends_the_run_and_is_not_mistaken_for_its_neighbour():
    cluster = Cluster(map_reduce(6))
    cluster.join(*((f"w{i}", "a") for i in range(8)))
    poison = 3
    for _ in range(200):
        if cluster.of(Failed) or not cluster.running:
            break
        launch = next(
            (i for i in cluster.running.values() if any(p.index == poison for p in i.task.partitions)),
            next(iter(cluster.running.values())),
        )
        if any(p.index == poison for p in launch.task.partitions):
            cluster.kill(launch.worker)
        else:
            cluster.answer(launch.task.name)
    with pytest.raises(RunFailedError, match="scan: partition 3 took 4 workers down"):
        raise cluster.of(Failed)[0].error


def test_user_error_ends_the_run_at_once_and_cancels_the_rest():
    cluster = Cluster(map_reduce(6))
    cluster.join(("w1", "a"), ("w2", "a"))
    task = next(iter(cluster.running.values())).task
    error = UserFunctionError("no")
    del cluster.running[task.name]
    out = cluster.feed(TaskFailed(0, task.id, task.attempt, "w1", FailureKind.USER, error))
    assert out[-1] == Failed(error)
    assert cluster.running == {}
    assert cluster.feed(WorkerJoined("w9", "a")) == []


def test_refused_task_is_tried_again_then_fails_with_its_cause():
    cluster = Cluster(map_reduce(1, 1))
    cluster.join(("w1", "a"))
    for attempt in range(4):
        task = cluster.running.pop(next(iter(cluster.running))).task
        assert task.attempt == attempt
        cluster.feed(TaskFailed(0, task.id, attempt, "w1", FailureKind.OTHER, MemoryError("full")))
    error = cluster.of(Failed)[0].error
    assert isinstance(error.__cause__, MemoryError)


def test_no_worker_waits_and_goes_on_when_one_joins():
    cluster = Cluster(map_reduce())
    cluster.join(("w1", "a"))
    cluster.kill("w1")
    assert cluster.running == {}
    cluster.join(("w2", "b"))
    cluster.run()
    assert cluster.finished()


def test_changed_content_of_a_rerun_is_refused():
    cluster = Cluster(map_reduce(4, 6))
    cluster.join(("w1", "a"), ("w2", "b"))
    while any(i.task.stage == 0 for i in cluster.running.values()):
        cluster.answer(next(n for n, i in cluster.running.items() if i.task.stage == 0))
    cluster.kill("w2")
    launch = next(i for i in cluster.running.values() if i.task.stage == 0)
    result = cluster.result(launch)
    changed = tuple(replace(p, fingerprint="other") for p in result.partitions)
    out = cluster.feed(TaskFinished(replace(result, partitions=changed)))
    assert isinstance(out[-1].error, NonDeterministicError)


def test_changed_content_names_the_user_function_and_its_line():
    def jitter(batch):
        return batch

    kernel = MapBatchesKernel(jitter, SCHEMA, "numpy", None, False, "jitter")
    plan = map_reduce(2, 2)
    mapped = replace(plan.stages[0], operator=Step(kernel, (plan.stages[0].operator,), SCHEMA))
    cluster = Cluster(replace(plan, stages=(mapped, plan.stages[1])))
    cluster.join(("w1", "a"), ("w2", "b"))
    while any(i.task.stage == 0 for i in cluster.running.values()):
        cluster.answer(next(n for n, i in cluster.running.items() if i.task.stage == 0))
    cluster.kill("w2")
    result = cluster.result(next(i for i in cluster.running.values() if i.task.stage == 0))
    changed = tuple(replace(p, fingerprint="other") for p in result.partitions)
    error = cluster.feed(TaskFinished(replace(result, partitions=changed)))[-1].error
    assert f"map_batches(jitter), {__file__}:{jitter.__code__.co_firstlineno}" in str(error)
    assert "headwater check" in str(error)


def test_boundaries_are_filled_in_from_the_samples_in_partition_order(monkeypatch):
    asked = []

    def boundaries(samples, keys, count):
        asked.append([sample.keys["x"].to_pylist() for sample in samples])
        return pa.table({"x": [1]})

    monkeypatch.setattr(partitioners, "range_boundaries", boundaries, raising=False)
    keys = (SortKey("x"),)
    stages = (
        scan(0, [64 * MB] * 3, sample=keys),
        narrow(1, 0, 3, Exchange(RangePartitioner(keys, 2), boundaries_from=0)),
        reduce(2, 1, 2),
    )
    cluster = Cluster(PhysicalPlan(stages, {"out": 2}))
    cluster.join(("w1", "a"), ("w2", "a"))
    while cluster.running:
        cluster.answer(list(cluster.running)[-1])  # last first: order of arrival must not matter
    assert cluster.finished()
    assert asked == [[[0], [1], [2]]]
    program = next(i.program for i in cluster.of(StageReady) if i.program.stage == 1)
    assert program.exchange.partitioner.boundaries.to_pylist() == [{"x": 1}]


def test_broadcast_input_is_named_once_for_the_task():
    step = Step(Kernel(), (BlockLeaf(0, 0, SCHEMA), BroadcastLeaf(1, 1, SCHEMA)), SCHEMA)
    join = Stage(2, "k", "join", step, 4, SCHEMA)
    cluster = Cluster(PhysicalPlan((scan(0, [MB] * 4), scan(1, [MB] * 2), join), {"out": 2}))
    cluster.join(("w1", "a"))
    cluster.run()
    task = cluster.of(Launch)[-1].task
    assert [s.partition for s in task.broadcast[1]] == [0, 1]
    assert all(set(item.slots) == {0} for item in task.partitions)


def test_empty_stages_finish():
    cluster = Cluster(PhysicalPlan((scan(0, [], hashed(2)), reduce(1, 0, 2)), {"out": 1}))
    cluster.join(("w1", "a"))
    cluster.run()
    assert cluster.finished()
    assert cluster.computed == {(1, 0): 1, (1, 1): 1}


def test_streamed_output_runs_as_far_as_demanded_and_releases_what_was_taken():
    plan = PhysicalPlan((scan(0, [64 * MB] * 10),), {"out": 0})
    cluster = Cluster(plan, streamed=(0,))
    cluster.join(("w1", "a"))
    assert cluster.running == {}
    cluster.feed(Demand(0, 3))
    cluster.run()
    assert sorted(p for _, p in cluster.computed) == [0, 1, 2]
    out = cluster.feed(OutputTaken(0, 0))
    assert [identity(b) for i in out for b in i.blocks] == [(0, 0, 0)]
    cluster.feed(Demand(0, 10))
    cluster.run()
    assert cluster.finished()
    assert len(cluster.computed) == 10


@settings(deadline=None)
@given(st.lists(st.integers(0, 300 * MB), max_size=300), st.integers(1, 64), st.integers(1, 5000))
def test_slices_are_runs_that_cover_everything_in_order(sizes, threads, fan_in):
    partitions = np.arange(len(sizes)) * 2
    runs = slice_partitions(partitions, np.array(sizes, dtype=float), threads, fan_in)
    assert np.concatenate([*runs, np.array([], dtype=int)]).tolist() == partitions.tolist()
    assert all(len(run) for run in runs)
    assert all(sum(sizes[p // 2] for p in run) <= 128 * MB + 300 * MB or len(run) == 1 for run in runs)


@pytest.mark.parametrize(
    ("count", "size", "threads", "tasks"),
    [(1000, 1000, 4, 11), (4, 10, 4, 4), (8, 10, 4, 4), (100, 64 * MB, 4, 50), (3, 500 * MB, 8, 3)],
)
def test_number_of_tasks(count, size, threads, tasks):
    got = len(slice_partitions(np.arange(count), np.full(count, size), threads))
    assert tasks * 0.7 <= got <= tasks * 1.5


def test_leaf_ranges_agree_with_the_plan():
    def leaf(slot):
        return BlockLeaf(slot, 0, SCHEMA)

    inner = UnionStep(((leaf(0), 2), (leaf(1), 3)), SCHEMA)
    outer = UnionStep(((Step(Kernel(), (inner, leaf(2)), SCHEMA), 5), (leaf(3), 2)), SCHEMA)
    ranges = list(leaf_ranges(outer, 7))
    for partition in range(7):
        mine = [(r.leaf.slot, partition - r.start) for r in ranges if r.holds(partition)]
        assert mine == [(leaf.slot, local) for leaf, local in leaves_of(outer, partition)]


def diamond() -> PhysicalPlan:
    both = Step(
        Kernel(), (ShuffleLeaf(0, 1, SCHEMA), BlockLeaf(1, 2, SCHEMA), BroadcastLeaf(2, 0, SCHEMA)), SCHEMA
    )
    return PhysicalPlan(
        (
            scan(0, [40 * MB] * 5, hashed(4)),
            narrow(1, 0, 5, hashed(4)),
            reduce(2, 0, 4),
            Stage(3, "k3", "join", both, 4, SCHEMA),
            narrow(4, 3, 4),
        ),
        {"a": 4, "b": 2},
    )


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_any_interleaving_of_results_and_deaths_ends_with_all_outputs(seed, nodes, per_node, deaths):
    rng = random.Random(seed)
    sizes = lambda p, s: 0 if (p + s) % 3 == 0 else 10 * MB  # noqa: E731
    cluster = Cluster(diamond(), sizes)
    pairs = [(f"w{n}.{i}", f"n{n}") for n in range(nodes) for i in range(per_node)]
    cluster.join(*pairs, threads=rng.randint(1, 2))
    late = []
    for step in range(2000):
        if not cluster.running:
            break
        if deaths and rng.random() < 0.15:
            deaths -= 1
            victim = rng.choice(sorted(cluster.workers))
            late += [i for i in cluster.running.values() if i.worker == victim]
            cluster.kill(victim)
            cluster.join((f"w-new{step}", rng.choice(["n0", "n9"])))
        elif late and rng.random() < 0.3:
            launch = late.pop()
            stage = cluster.plan.stages[launch.task.stage]
            cluster.feed(TaskFinished(result_of(launch.task, stage, "n0", launch.worker, sizes)))
        else:
            cluster.answer(rng.choice(sorted(cluster.running)))
    if cluster.of(Failed):  # a task may be unlucky four times
        assert "workers down" in str(cluster.of(Failed)[0].error)
        return
    assert cluster.finished()
    assert cluster.running == {}
    assert set(cluster.computed) == {(s.id, p) for s in cluster.plan.stages for p in range(s.partitions)}
    kept = {(stage, partition) for stage, partition, _ in cluster.blocks}
    assert {(s, p) for s in (2, 4) for p in range(4)} <= kept


def test_a_worker_that_joins_gets_a_share_of_what_waits():
    cluster = Cluster(map_reduce(maps=64, reduces=2, size=1000))
    cluster.join(("w0", "a"))
    waiting = cluster.scheduler.placement.waiting
    cluster.join(("w1", "b"), ("w2", "c"), ("w3", "d"))
    assert cluster.scheduler.placement.waiting + len(cluster.running) > waiting + 2
    assert {launch.worker for launch in cluster.running.values()} == {"w0", "w1", "w2", "w3"}
    cluster.run()
    assert cluster.finished()
    assert set(cluster.computed.values()) == {1}


def test_nothing_is_put_behind_a_long_task_and_no_long_task_behind_another():
    placement = Placement()
    for address in ("a", "b"):
        placement.join(WorkerSlots(address, address, threads=1, host=""))
    for number in range(4):
        placement.add(TaskRun(0, number, np.array([number]), long=True))
    chosen = []
    while (choice := placement.next()) is not None:
        task, worker = choice
        worker.attempts[task.id, 0] = Attempt(task, 0, worker.address, record=None)  # type: ignore[arg-type]
        chosen.append(worker.address)
    assert sorted(chosen) == ["a", "b"]
    placement.add(TaskRun(1, 9, np.array([0])))
    assert placement.next() is None
