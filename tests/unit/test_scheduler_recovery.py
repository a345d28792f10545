"""The scheduler's recovery, event by event: waiting reducers, roll-backs, returns, backups, blame, full disks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import NonDeterministicError, RunFailedError
from headwater.ops.kernel import Kernel
from headwater.ops.map_batches import MapBatchesKernel
from headwater.ops.partitioner import HashPartitioner
from headwater.ops.sink import Sink, StagedFile
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
)
from headwater.runtime.scheduler import Scheduler
from headwater.runtime.scheduler_events import (
    BlocksFound,
    BlocksLost,
    BlocksMoved,
    Cancel,
    Cause,
    Demand,
    Failed,
    FailureKind,
    Finished,
    InputsLost,
    Launch,
    OutputTaken,
    Progress,
    Release,
    Relocate,
    Restore,
    StageFinished,
    Survey,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from headwater.runtime.scheduling.departures import LIMBO_SECONDS
from headwater.runtime.task import Block, Metrics, PartitionResult, Task, TaskResult

SCHEMA = pa.schema([("x", pa.int64())])
MB = 1 << 20


def scan(stage_id: int, count: int, exchange: Exchange | None = None, size: int = 64 * MB, **more) -> Stage:
    leaf = ScanLeaf(stage_id, Source(), ("x",), None, None, SCHEMA)
    splits = {stage_id: tuple(Split(i, None, size, ()) for i in range(count))}
    return Stage(stage_id, f"k{stage_id}", "scan", leaf, count, SCHEMA, splits, exchange, **more)


def stage(stage_id: int, leaves, count: int, exchange: Exchange | None = None, **more) -> Stage:
    step = Step(Kernel(), tuple(leaves), SCHEMA)
    return Stage(
        stage_id, f"k{stage_id}", f"stage {stage_id}", step, count, SCHEMA, exchange=exchange, **more
    )


def shuffle(source: int, slot: int = 100) -> ShuffleLeaf:
    return ShuffleLeaf(slot, source, SCHEMA)


def hashed(count: int) -> Exchange:
    return Exchange(HashPartitioner(("x",), count))


def jitter(batch):
    return batch


def varying(made: Stage) -> Stage:
    kernel = MapBatchesKernel(jitter, SCHEMA, "numpy", None, False, "jitter", False)
    return replace(made, operator=Step(kernel, (made.operator,), SCHEMA))


def map_reduce(maps: int = 4, reduces: int = 3, **more) -> PhysicalPlan:
    return PhysicalPlan((scan(0, maps, hashed(reduces)), stage(1, [shuffle(0)], reduces, **more)), {"out": 1})


def result_for(plan, part, attempt: int, node: str, fingerprint: str = "", bytes_of=lambda s, i: 100):
    made, index = plan.stages[part[0]], part[1]
    fingerprint = fingerprint or f"f{part}"
    if made.sink is not None:
        files = (StagedFile(f"{index}-{attempt}", f"{index}", 1, 9),)
        return PartitionResult(index, 1, fingerprint, None, files)
    count = made.exchange.count if made.exchange else 1
    lengths = [bytes_of(part, i) for i in range(count)]
    offsets, rows = np.cumsum([8, *lengths]), np.array([n // 10 for n in lengths])
    block = Block(
        *part, attempt, node, f"s{part[0]}-p{index}-a{attempt}", offsets, rows, int(offsets[-1]), fingerprint
    )
    return PartitionResult(index, int(rows.sum()), fingerprint, block)


class Hand:
    """Feeds a scheduler by hand, and keeps what it launched."""

    def __init__(self, plan: PhysicalPlan, *workers: tuple[str, str], threads: int = 1, **options):
        self.plan, self.bytes_of = plan, options.pop("bytes_of", lambda s, i: 100)
        self.scheduler = Scheduler(plan, "run", **options)
        self.nodes: dict[str, str] = {}
        self.running: dict[str, Launch] = {}
        self.log: list = []
        self.made: list[tuple[int, int]] = []
        self.join(*workers, threads=threads)

    def feed(self, *events) -> list:
        out = self.scheduler.handle(*events)
        self.log += out
        self.running.update({i.task.name: i for i in out if isinstance(i, Launch)})
        return out

    def join(self, *workers: tuple[str, str], threads: int = 1) -> list:
        self.nodes.update(workers)
        return self.feed(*(WorkerJoined(w, node, threads) for w, node in workers))

    def leave(self, worker: str, cause: Cause = Cause.DIED) -> list:
        self.running = {name: i for name, i in self.running.items() if i.worker != worker}
        return self.feed(WorkerLeft(worker, cause))

    def task_of(self, stage_id: int, partition: int) -> Task:
        """The last attempt launched at a partition."""
        launches = [i for i in self.running.values() if i.task.stage == stage_id]
        return next(
            i.task for i in reversed(launches) if any(p.index == partition for p in i.task.partitions)
        )

    def result(self, task: Task, fingerprint: str = "", seconds: float = 0.01) -> TaskResult:
        worker = self.running[task.name].worker
        parts = [(task.stage, p.index) for p in task.partitions]
        node = self.nodes[worker]
        done = [result_for(self.plan, p, task.attempt, node, fingerprint, self.bytes_of) for p in parts]
        return TaskResult(task.stage, task.id, task.attempt, node, worker, tuple(done), Metrics(seconds))

    def finish(self, task: Task, fingerprint: str = "", seconds: float = 0.01) -> list:
        result = self.result(task, fingerprint, seconds)
        del self.running[task.name]
        self.made += [(task.stage, p.index) for p in task.partitions]
        return self.feed(TaskFinished(result))

    def fail(self, task: Task, kind: FailureKind, error: BaseException | None = None) -> list:
        worker = self.running.pop(task.name).worker
        return self.feed(TaskFailed(task.stage, task.id, task.attempt, worker, kind, error or OSError("no")))

    def finish_stage(self, stage_id: int) -> None:
        while names := [n for n, i in self.running.items() if i.task.stage == stage_id]:
            self.finish(self.running[names[0]].task)

    def finish_all(self) -> None:
        for _ in range(1000):
            if not self.running:
                return
            self.finish(next(iter(self.running.values())).task)

    def lacks(self, task: Task, *lost: tuple[int, int, int]) -> list:
        return self.feed(InputsLost(task.stage, task.id, task.attempt, lost))

    def of(self, kind) -> list:
        return [i for i in self.log if isinstance(i, kind)]

    @property
    def error(self):
        return self.of(Failed)[0].error if self.of(Failed) else None


def found(plan, node: str, *parts: tuple[int, int, int], fingerprint: str = "") -> BlocksFound:
    return BlocksFound(node, tuple(result_for(plan, p[:2], p[2], node, fingerprint) for p in parts))


# -- tasks that lack inputs ---------------------------------------------------------------------


def test_a_waiting_task_is_told_every_place_of_what_it_lacks_broadcasts_too():
    join = stage(2, [shuffle(0), BroadcastLeaf(101, 1, SCHEMA)], 4)
    plan = PhysicalPlan((scan(0, 2, hashed(4)), scan(1, 2), join), {"out": 2})
    hand = Hand(plan, ("w1", "a"))
    hand.finish_stage(0)
    hand.finish_stage(1)
    task = hand.running[next(iter(hand.running))].task
    hand.finish_all() if len(task.partitions) == 1 else None
    assert len(task.partitions) > 1
    old = {s for p in task.partitions for s in p.slots[100] if s.partition == 1}
    old |= {s for s in task.broadcast[101] if s.partition == 0}
    hand.lacks(task, (0, 1, 0), (1, 0, 0))
    hand.finish(hand.task_of(0, 1))
    assert hand.of(Relocate) == []  # not before all is there
    hand.finish(hand.task_of(1, 0))
    (told,) = hand.of(Relocate)
    assert (told.name, told.worker, told.nodes) == (task.name, "w1", {"a": ("w1",)})
    assert set(told.segments) == old
    assert {new.attempt for new in told.segments.values()} == {1}
    assert {(o.partition, o.offset, o.length) for o in told.segments} == {
        (n.partition, n.offset, n.length) for n in told.segments.values()
    }
    hand.finish_all()
    assert hand.of(Finished)


def test_a_waiting_task_does_not_keep_its_only_thread_from_what_it_waits_for():
    hand = Hand(map_reduce(3, 2), ("w1", "a"), bytes_of=lambda s, i: 64 * MB)
    hand.finish_stage(0)
    assert len(hand.running) == 2  # as many as the worker takes
    for task in [i.task for i in hand.running.values()]:
        hand.lacks(task, (0, 1, 0))
    assert hand.task_of(0, 1).attempt == 1
    hand.finish(hand.task_of(0, 1))
    assert len(hand.of(Relocate)) == 2
    hand.finish_all()
    assert hand.of(Finished)
    assert sorted(hand.made) == sorted([(0, 0), (0, 1), (0, 1), (0, 2), (1, 0), (1, 1)])


def test_what_was_made_again_already_is_told_at_once():
    hand = Hand(map_reduce(3, 2), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    first, second = hand.task_of(1, 0), hand.task_of(1, 1)
    hand.lacks(first, (0, 1, 0))
    hand.finish(hand.task_of(0, 1))
    out = hand.lacks(second, (0, 1, 0))
    assert [(i.name, *{s.attempt for s in i.segments.values()}) for i in out if isinstance(i, Relocate)] == [
        (second.name, 1)
    ]
    assert hand.made.count((0, 1)) == 2


def test_a_copy_on_another_node_is_read_instead_of_making_the_block_again():
    hand = Hand(map_reduce(2, 1), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    node = hand.scheduler.stages[0].block(0).node
    other = "b" if node == "a" else "a"
    hand.feed(found(hand.plan, other, (0, 0, 0)))
    out = hand.lacks(hand.task_of(1, 0), (0, 0, 0))
    (told,) = [i for i in out if isinstance(i, Relocate)]
    assert {(s.node, s.attempt) for s in told.segments.values()} == {(other, 0)}
    assert not any(isinstance(i, Launch) for i in out)


def test_a_place_that_is_out_of_date_says_nothing_of_where_the_block_is_now():
    hand = Hand(map_reduce(2, 2), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    block = hand.scheduler.stages[0].block(0)
    target = "b" if block.node == "a" else "a"
    hand.feed(BlocksMoved(block.node, target, ((0, 0, 0),)))
    for task in (hand.task_of(1, 0), hand.task_of(1, 1)):
        (told,) = [i for i in hand.lacks(task, (0, 0, 0)) if isinstance(i, Relocate)]
        assert {s.node for s in told.segments.values()} == {target}
    assert hand.scheduler.recovery.blocks_lost == 0
    # but what can't be read where it is now is lost
    hand.lacks(hand.task_of(1, 0), (0, 0, 0))
    assert hand.scheduler.recovery.blocks_lost == 1
    assert hand.task_of(0, 0).attempt == 1


def test_a_task_that_says_again_what_it_lacks_is_not_failing():
    hand = Hand(map_reduce(2, 1), ("w1", "a"))
    hand.finish_stage(0)
    for _ in range(50):
        hand.lacks(hand.task_of(1, 0), (0, 0, 0))
    assert hand.error is None
    assert len(hand.of(Launch)) == 2 + 1 + 1
    hand.finish_all()
    assert hand.of(Finished)


def test_a_task_that_can_read_nothing_that_is_there_ends_the_run():
    hand = Hand(map_reduce(1, 1), ("w1", "a"))
    hand.finish_stage(0)
    for attempt in range(8):
        hand.lacks(hand.task_of(1, 0), (0, 0, attempt))
        if hand.error is None:
            hand.finish(hand.task_of(0, 0))
    assert isinstance(hand.error, RunFailedError)
    assert "stage 1: partition 0: inputs could not be read in 8 attempts" in str(hand.error)


def test_the_worker_of_a_waiting_task_dies_meanwhile():
    hand = Hand(map_reduce(3, 1), ("w1", "a"), ("w2", "a"))
    hand.finish_stage(0)
    task = hand.task_of(1, 0)
    hand.lacks(task, (0, 1, 0))
    worker = hand.running[task.name].worker
    hand.leave(worker)
    while hand.running:
        hand.finish(next(iter(hand.running.values())).task)
    assert hand.of(Finished)
    assert hand.of(Relocate) == []
    assert (hand.made.count((0, 1)), hand.made.count((1, 0))) == (2, 1)


def test_the_node_of_what_a_task_lacks_returns_meanwhile():
    hand = Hand(map_reduce(4, 2), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    gone = [p for p in range(4) if hand.scheduler.stages[0].block(p).node == "b"]
    task = next(i.task for i in hand.running.values() if i.worker == "w1")
    hand.leave("w2", Cause.UNREACHABLE)
    hand.lacks(task, *((0, p, 0) for p in gone))
    reruns = [i.task.name for i in hand.running.values() if i.task.stage == 0]
    assert reruns
    assert Survey("b") in hand.join(("w3", "b"))
    out = hand.feed(found(hand.plan, "b", *((0, p, 0) for p in gone)))
    assert {i.name for i in out if isinstance(i, Cancel)} == set(reruns)
    (told,) = [i for i in out if isinstance(i, Relocate)]
    assert {s.node for s in told.segments.values()} == {"b"}
    assert told.nodes == {"b": ("w3",)}
    (loss,) = [loss for loss in hand.scheduler.losses.all if loss.minimum]
    assert (loss.minimum, loss.returned, loss.rerun) == (len(gone), len(gone), 0)
    assert loss.recovered is not None


# -- roll-backs ---------------------------------------------------------------------------------


def two_exchanges(**more) -> PhysicalPlan:
    stages = (
        varying(scan(0, 3, hashed(3))),
        stage(1, [shuffle(0)], 3, hashed(2)),
        stage(2, [shuffle(1)], 2),
        scan(3, 2),
        stage(4, [BlockLeaf(104, 2, SCHEMA), BroadcastLeaf(105, 3, SCHEMA)], 2, **more),
    )
    return PhysicalPlan(stages, {"out": 4})


def test_changed_bytes_of_a_varying_stage_undo_all_that_was_made_of_the_old_ones():
    hand = Hand(two_exchanges(), ("w1", "a"), ("w2", "b"), threads=2)
    for number in (0, 3, 1):
        hand.finish_stage(number)
    hand.finish(hand.task_of(2, 0))
    running = hand.task_of(2, 1)
    hand.feed(BlocksLost(((0, 1, 0),)))
    assert [i.name for i in hand.of(Cancel)] == []
    hand.lacks(running, (1, 0, 0))  # stage 1 has to run again, and reads what was lost
    hand.finish(hand.task_of(0, 0)) if any(i.task.stage == 0 for i in hand.running.values()) else None
    for task in [i.task for i in hand.running.values() if i.task.stage == 0]:
        out = hand.finish(task, fingerprint="changed")
    assert running.name in {i.name for i in hand.of(Cancel)}
    released = [(b.stage, b.partition, b.attempt, b.node) for i in hand.of(Release) for b in i.blocks]
    assert len(released) == len(set(released))
    assert {(2, 0, 0)} <= {key[:3] for key in released}
    assert out
    hand.finish_all()
    assert hand.of(Finished)
    assert hand.made.count((2, 0)) == 2
    assert hand.made.count((3, 0)) == 1  # not made of it
    assert {1} == {int(hand.scheduler.stages[4].block(p).attempt >= 0) for p in range(2)}
    losses = hand.scheduler.losses.all
    assert sum(loss.minimum for loss in losses) == sum(loss.rerun for loss in losses)


def test_other_fingerprints_of_what_was_undone_are_right():
    hand = Hand(two_exchanges(), ("w1", "a"), threads=2)
    for number in (0, 3, 1, 2):
        hand.finish_stage(number)
    hand.scheduler.stages[4].taken[:] = False
    task = hand.task_of(4, 0)
    hand.lacks(task, (2, 0, 0))
    while (4, 0) not in hand.made:
        task = next(
            i.task
            for i in hand.running.values()
            if i.task.name != hand.task_of(4, 0).name or len(hand.running) == 1
        )
        hand.finish(task, fingerprint=f"new{task.stage}")
        assert hand.error is None
    hand.finish_all()
    assert hand.error is None
    assert hand.of(Finished)


def test_rows_that_were_read_already_cannot_be_undone():
    plan = PhysicalPlan((varying(scan(0, 2)), stage(1, [BlockLeaf(101, 0, SCHEMA)], 2)), {"out": 1, "raw": 0})
    hand = Hand(plan, ("w1", "a"), ("w2", "b"), streamed=(1,))
    hand.feed(Demand(1, 2))
    hand.finish_stage(0)
    hand.finish(hand.task_of(1, 0))
    hand.feed(OutputTaken(1, 0))
    hand.feed(BlocksLost(((0, 0, 0),)))
    hand.finish(hand.task_of(0, 0), fingerprint="changed")
    assert isinstance(hand.error, NonDeterministicError)
    assert "rows made of the first result have been read already" in str(hand.error)
    assert "map_batches(jitter)" in str(hand.error)


def test_a_returning_node_does_not_bring_back_what_was_undone():
    plan = PhysicalPlan(
        (
            varying(scan(0, 1)),
            stage(1, [BlockLeaf(101, 0, SCHEMA)], 1),
            stage(2, [BlockLeaf(102, 1, SCHEMA)], 1),
        ),
        {"out": 2},
    )
    hand = Hand(plan, ("w1", "a"))
    hand.finish_stage(0)
    hand.feed(BlocksMoved("a", "a", ()))
    hand.finish_stage(1)
    hand.leave("w1")
    hand.join(("w2", "b"))
    hand.finish(hand.task_of(0, 0), fingerprint="changed")
    hand.join(("w3", "a"))
    hand.feed(found(plan, "a", (0, 0, 0), (1, 0, 0)))
    assert not hand.scheduler.stages[1].done[0]
    hand.finish_all()
    assert hand.scheduler.stages[1].block(0).attempt == 1
    assert hand.of(Finished)


# -- nodes that come back -----------------------------------------------------------------------


def test_nodes_that_come_to_a_new_dask_scheduler_bring_all_they_had():
    hand = Hand(map_reduce(4, 2), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    where = {p: hand.scheduler.stages[0].block(p).node for p in range(4)}
    hand.running.clear()
    hand.feed(WorkerLeft("w1", Cause.SCHEDULER), WorkerLeft("w2", Cause.SCHEDULER))
    for worker, node in (("w3", "a"), ("w4", "b")):
        assert hand.join((worker, node))[0] == Survey(node)
        assert hand.running == {}  # before it is known what is there
        hand.feed(found(hand.plan, node, *((0, p, 0) for p in range(4) if where[p] == node)))
    hand.finish_all()
    assert hand.of(Finished)
    assert sorted(hand.made) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert hand.scheduler.recovery.nodes_lost == []


def test_a_node_that_comes_back_without_some_blocks_loses_exactly_these():
    hand = Hand(map_reduce(4, 2), ("w1", "a"))
    hand.finish_stage(0)
    hand.running.clear()
    hand.feed(WorkerLeft("w1", Cause.SCHEDULER))
    hand.join(("w2", "a"))
    hand.feed(found(hand.plan, "a", (0, 0, 0), (0, 1, 0), (0, 3, 0)))
    hand.finish_all()
    assert hand.of(Finished)
    assert hand.made.count((0, 2)) == 2
    assert len(hand.made) == 7


def test_a_node_that_stays_away_is_lost_after_a_while():
    hand = Hand(map_reduce(4, 2), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    where = {p: hand.scheduler.stages[0].block(p).node for p in range(4)}
    hand.running.clear()
    hand.feed(Tick(10.0), WorkerLeft("w1", Cause.SCHEDULER), WorkerLeft("w2", Cause.SCHEDULER))
    hand.feed(Tick(100.0))  # the time without any scheduler doesn't count
    hand.join(("w3", "a"))
    hand.feed(found(hand.plan, "a", *((0, p, 0) for p in range(4) if where[p] == "a")))
    hand.feed(Tick(100.0 + LIMBO_SECONDS - 0.1))
    assert hand.running == {}
    hand.feed(Tick(100.0 + LIMBO_SECONDS))
    hand.finish_all()
    assert hand.of(Finished)
    assert hand.scheduler.recovery.nodes_lost == ["b"]
    twice = {part for part in hand.made if hand.made.count(part) == 2}
    assert twice == {(0, p) for p in range(4) if where[p] == "b"}


def test_an_answer_of_a_node_that_is_gone_again_counts_for_nothing():
    hand = Hand(map_reduce(2, 1), ("w1", "a"))
    hand.finish_stage(0)
    hand.running.clear()
    hand.feed(WorkerLeft("w1", Cause.SCHEDULER))
    hand.join(("w2", "a"))
    hand.feed(WorkerLeft("w2", Cause.SCHEDULER))
    hand.feed(BlocksFound("a", ()))
    hand.join(("w3", "a"))
    hand.feed(found(hand.plan, "a", (0, 0, 0), (0, 1, 0)))
    hand.finish_all()
    assert sorted(hand.made) == [(0, 0), (0, 1), (1, 0)]


def test_a_node_that_dies_while_it_was_awaited_holds_up_nobody():
    hand = Hand(map_reduce(2, 1), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    hand.running.clear()
    hand.feed(WorkerLeft("w1", Cause.SCHEDULER))
    hand.join(("w3", "a"))
    hand.leave("w3", Cause.DIED)
    assert hand.running
    assert hand.scheduler.recovery.nodes_lost == ["a"]


def test_reruns_that_only_served_what_came_back_are_dropped():
    plan = PhysicalPlan(
        (scan(0, 2), stage(1, [BlockLeaf(101, 0, SCHEMA)], 2), stage(2, [BlockLeaf(102, 1, SCHEMA)], 2)),
        {"out": 2},
    )
    hand = Hand(plan, ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    hand.finish_stage(1)
    lost = [p for p in range(2) if hand.scheduler.stages[1].block(p).node == "b"]
    assert lost
    hand.leave("w2", Cause.UNREACHABLE)
    hand.join(("w3", "c"))
    rerun = {i.task.name for i in hand.running.values() if i.task.stage == 0}
    assert rerun
    hand.join(("w4", "b"))
    out = hand.feed(found(plan, "b", *((1, p, 0) for p in lost)))
    assert rerun <= {i.name for i in out if isinstance(i, Cancel)}
    assert not hand.scheduler.losses.missing


def test_what_comes_back_and_nobody_reads_is_deleted():
    plan = PhysicalPlan((scan(0, 2), stage(1, [BlockLeaf(101, 0, SCHEMA)], 2)), {"out": 1})
    hand = Hand(plan, ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    lost = [p for p in range(2) if hand.scheduler.stages[0].block(p).node == "b"]
    running = [i.task for i in hand.running.values() if i.worker == "w1"]
    hand.leave("w2", Cause.UNREACHABLE)
    for task in running:
        hand.finish(task)
    hand.finish_all()
    assert hand.of(Finished)
    hand.join(("w3", "b"))
    out = hand.feed(found(plan, "b", *((0, p, 0) for p in lost)))
    assert {(b.partition, b.attempt, b.node) for i in out if isinstance(i, Release) for b in i.blocks} == {
        (p, 0, "b") for p in lost
    }


# -- runs that begin with results ---------------------------------------------------------------


def test_a_map_of_which_nothing_is_known_is_made_before_it_is_read():
    plan = map_reduce(3, 2)
    hand = Hand(plan, epoch=1)
    hand.nodes["w1"] = "a"
    restore = Restore({(0, p): f"f{(0, p)}" for p in range(3)}, {(0, p): 308 for p in range(3)}, (), {})
    hand.feed(WorkerJoined("w1", "a"), restore, found(plan, "a", (0, 0, 3)))
    hand.finish_stage(0)
    assert sorted(hand.made) == [(0, 1), (0, 2)]
    assert all([s.partition for s in p.slots[100]] == [0, 1, 2] for p in hand.task_of(1, 0).partitions)
    assert all(i.task.attempt >= 10_000 for i in hand.of(Launch))
    (loss,) = hand.scheduler.losses.all
    assert (loss.cause, loss.lost, loss.minimum, loss.rerun) == ("driver died", 2, 2, 2)


def test_blocks_of_other_bytes_or_another_cut_are_not_taken():
    plan = map_reduce(3, 2)
    hand = Hand(plan, epoch=1)
    hand.nodes["w1"] = "a"
    other = found(map_reduce(3, 5), "a", (0, 1, 0))
    restore = Restore({(0, p): f"f{(0, p)}" for p in range(3)}, {}, (), {})
    wrong = found(plan, "a", (0, 0, 0), fingerprint="wrong")
    hand.feed(WorkerJoined("w1", "a"), restore, wrong, other, found(plan, "a", (0, 2, 0)))
    hand.finish_stage(0)
    assert sorted(hand.made) == [(0, 0), (0, 1)]


def test_a_block_of_a_varying_stage_counts_only_if_its_bytes_are_known():
    plan = PhysicalPlan((varying(scan(0, 2)), stage(1, [BlockLeaf(101, 0, SCHEMA)], 2)), {"out": 1})
    hand = Hand(plan, epoch=1)
    hand.nodes["w1"] = "a"
    restore = Restore({(0, 0): "f(0, 0)"}, {}, (), {})
    hand.feed(WorkerJoined("w1", "a"), restore, found(plan, "a", (0, 0, 0), (0, 1, 0)))
    hand.finish_stage(0)
    assert hand.made == [(0, 1)]


# -- backups ------------------------------------------------------------------------------------


def slow_run(sink: Sink | None = None) -> tuple[Hand, Task]:
    """Eight tasks on two workers; the one on w2 is late, and nothing else waits."""
    plan = PhysicalPlan((scan(0, 8, sink=sink),), {"out": 0})
    hand = Hand(plan, ("w1", "a"), ("w2", "b"))
    slow = next(i.task for i in hand.running.values() if i.worker == "w2")
    now = 0.0
    while others := [i.task for i in hand.running.values() if i.worker == "w1"]:
        now += 1.0
        hand.feed(Tick(now))
        hand.finish(others[0], seconds=1.0)
        behind = [i.task for i in hand.running.values() if i.worker == "w2" and i.task is not slow]
        if behind and not others[1:]:
            break
    return hand, slow


def test_a_late_task_is_backed_up_and_the_first_result_counts():
    hand, slow = slow_run()
    hand.feed(Tick(20.0), Progress({slow.name: 0.1}))
    backups = [i for i in hand.of(Launch) if i.task.id == slow.id and i.task.name != slow.name]
    assert [(i.worker, i.task.attempt) for i in backups] == [("w1", slow.attempt + 1)]
    out = hand.finish(backups[0].task, seconds=1.0)
    assert Cancel(slow.name, "w2") in out
    assert hand.scheduler.losses.backups_won == 1
    stray = hand.feed(TaskFinished(hand.result(slow)))
    assert [(b.partition, b.attempt) for i in stray if isinstance(i, Release) for b in i.blocks] == [
        (p.index, slow.attempt) for p in slow.partitions
    ]


def test_the_slow_one_may_still_be_first():
    hand, slow = slow_run()
    hand.feed(Tick(20.0), Progress({slow.name: 0.1}))
    backup = hand.task_of(0, slow.partitions[0].index)
    assert backup.name != slow.name
    out = hand.finish(slow, seconds=20.0)
    assert Cancel(backup.name, "w1") in out
    assert hand.scheduler.losses.backups_won == 0


def test_a_task_is_not_backed_up_while_others_wait_or_before_it_is_late():
    plan = PhysicalPlan((scan(0, 12),), {"out": 0})
    hand = Hand(plan, ("w1", "a"), ("w2", "b"))
    slow = next(i.task for i in hand.running.values() if i.worker == "w2")
    for now in range(1, 4):
        hand.feed(Tick(float(now)))
        hand.finish(next(i.task for i in hand.running.values() if i.worker == "w1"), seconds=1.0)
    hand.feed(Tick(50.0), Progress({slow.name: 0.1}))
    assert hand.scheduler.placement.waiting
    assert hand.scheduler.losses.backups == 0


def test_backups_can_be_turned_off():
    plan = PhysicalPlan((scan(0, 3),), {"out": 0})
    hand = Hand(plan, ("w1", "a"), ("w2", "b"), backups=False)
    first = next(iter(hand.running.values())).task
    for task in [i.task for i in hand.running.values() if i.task is not first]:
        hand.finish(task, seconds=1.0)
    hand.feed(Tick(1000.0))
    assert hand.scheduler.losses.backups == 0


def test_the_loser_keeps_its_thread_until_it_answers():
    hand, slow = slow_run()
    hand.feed(Tick(20.0), Progress({slow.name: 0.1}))
    hand.finish(hand.task_of(0, slow.partitions[0].index), seconds=1.0)
    assert hand.scheduler.placement.workers["w2"].occupied >= 1
    occupied = hand.scheduler.placement.workers["w2"].occupied
    hand.fail(slow, FailureKind.OTHER)
    assert hand.scheduler.placement.workers["w2"].occupied <= occupied
    assert (slow.id, slow.attempt) not in hand.scheduler.placement.workers["w2"].attempts


def test_files_that_the_loser_staged_are_not_committed():
    hand, slow = slow_run(Sink())
    hand.feed(Tick(20.0), Progress({slow.name: 0.1}))
    backup = hand.task_of(0, slow.partitions[0].index)
    assert backup.attempt == slow.attempt + 1
    hand.finish(backup, seconds=1.0)
    assert not any(isinstance(i, Release) for i in hand.feed(TaskFinished(hand.result(slow))))
    index = slow.partitions[0].index
    assert hand.scheduler.stages[0].results[index].files[0].path == f"{index}-{backup.attempt}"


def test_no_backup_is_given_inputs_that_are_gone():
    hand = Hand(map_reduce(4, 8), ("w1", "a"), ("w2", "b"), ("w3", "c"), bytes_of=lambda s, i: 30 * MB)
    hand.finish_stage(0)
    slow = next(i.task for i in hand.running.values() if i.worker == "w2")
    while others := [i.task for i in hand.running.values() if i.worker != "w2"]:
        hand.finish(others[0], seconds=1.0)
    hand.feed(BlocksLost(((0, slow.partitions[0].slots[100][0].partition, 0),)))
    before = len(hand.of(Launch))
    hand.feed(Tick(100.0), Progress({slow.name: 0.5}))
    assert [i.task.stage for i in hand.of(Launch)[before:] if i.task.id == slow.id] == []


def test_tasks_at_a_slow_worker_do_not_wait_for_it_forever():
    plan = PhysicalPlan((scan(0, 2), stage(1, [BlockLeaf(101, 0, SCHEMA)], 2)), {"out": 1})
    hand = Hand(plan, ("w1", "a"), ("w2", "b"), bytes_of=lambda s, i: 4000 * MB)
    hand.finish_stage(0)
    hand.finish(next(i.task for i in hand.running.values() if i.worker == "w1"))
    hand.scheduler.placement.workers["w2"].pace = 50.0
    hand.fail(next(i.task for i in hand.running.values() if i.worker == "w2"), FailureKind.OTHER)
    hand.finish_all()
    assert hand.of(Finished)


# -- what kills its workers ---------------------------------------------------------------------


def test_a_poisonous_partition_is_found_without_charging_those_beside_and_behind_it():
    plan = PhysicalPlan((scan(0, 8, size=1),), {"out": 0})
    hand = Hand(plan, *((f"w{n}", f"n{n}") for n in range(12)), threads=1)
    poison, deaths = 5, 0
    for _ in range(100):
        if hand.error or not hand.running:
            break
        launch = next(
            (i for i in hand.running.values() if any(p.index == poison for p in i.task.partitions)), None
        )
        if launch is None:
            break
        if deaths >= 2:
            assert [p.index for p in launch.task.partitions] == [poison]  # alone
            assert sum(i.worker == launch.worker for i in hand.running.values()) == 1
        deaths += 1
        hand.leave(launch.worker, Cause.HUNG if deaths % 2 else Cause.DIED)
    assert deaths == 4
    assert "scan: partition 5 took 4 workers down (w" in str(hand.error)


def test_the_error_names_the_function():
    plan = PhysicalPlan((varying(scan(0, 1)),), {"out": 0})
    hand = Hand(plan, *((f"w{n}", f"n{n}") for n in range(5)))
    while hand.error is None:
        hand.leave(next(iter(hand.running.values())).worker)
    assert f"map_batches(jitter), {__file__}" in str(hand.error)


@pytest.mark.parametrize("cause", [Cause.LEFT, Cause.SCHEDULER])
def test_workers_that_leave_for_other_reasons_are_nobodys_fault(cause):
    hand = Hand(PhysicalPlan((scan(0, 1),), {"out": 0}))
    for number in range(12):
        hand.join((f"w{number}", "a"))
        hand.feed(BlocksFound("a", ()))
        assert hand.running, number
        hand.leave(f"w{number}", cause)
    assert hand.error is None


def test_a_task_behind_the_one_that_runs_is_not_charged():
    hand = Hand(PhysicalPlan((scan(0, 6),), {"out": 0}), ("w1", "a"), ("w2", "b"))
    first, behind = [i.task for i in hand.running.values() if i.worker == "w1"]
    hand.leave("w1")
    parked = {task.id: task for task in hand.scheduler.placement.drain()}
    assert parked[first.id].deaths == 1
    assert (parked[behind.id].deaths, parked[behind.id].company) == (0, 0)


def test_a_task_that_the_cluster_dropped_is_charged_only_if_it_ran():
    hand = Hand(PhysicalPlan((scan(0, 2),), {"out": 0}), ("w1", "a"))
    first, behind = [i.task for i in hand.running.values()]
    for _ in range(6):
        behind = next(i.task for i in hand.running.values() if i.task.id == behind.id)
        hand.fail(behind, FailureKind.LOST)
    assert hand.error is None
    assert first.name in hand.running


def test_tasks_that_ran_together_are_suspects_and_run_alone_then_elsewhere_first():
    hand = Hand(PhysicalPlan((scan(0, 4, size=1),), {"out": 0}), ("w1", "a"), threads=4)
    assert len(hand.running) == 4
    hand.join(("w2", "a"), ("w3", "b"), threads=4)
    hand.leave("w1")
    assert [i.worker for i in hand.running.values()] == ["w3", "w2"]  # one each, where nobody died first
    hand.finish_all()
    assert hand.of(Finished)


def test_a_waiting_task_does_not_keep_a_suspect_from_running():
    hand = Hand(map_reduce(2, 1), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    task = hand.task_of(1, 0)
    keeper = hand.running[task.name].worker
    lost = next(p for p in range(2) if hand.scheduler.stages[0].block(p).node != hand.nodes[keeper])
    hand.leave("w1" if keeper == "w2" else "w2")
    hand.lacks(task, (0, lost, 0))
    for number in range(2):  # what it waits for takes two workers down
        rerun = hand.task_of(0, lost)
        if hand.running[rerun.name].worker == keeper:
            hand.fail(rerun, FailureKind.LOST)
        hand.scheduler.now += number
    rerun = hand.task_of(0, lost)
    assert [p.index for p in rerun.partitions] == [lost]
    hand.finish_all()
    assert hand.of(Finished)


def test_a_suspect_that_waits_does_not_keep_its_worker_from_what_it_waits_for():
    hand = Hand(map_reduce(2, 1), ("w0", "a"))
    hand.finish_stage(0)
    for number in range(1, 3):
        hand.join((f"w{number}", "a"))
        hand.leave(hand.running[hand.task_of(1, 0).name].worker)
    hand.lacks(hand.task_of(1, 0), (0, 0, 0))
    hand.finish(hand.task_of(0, 0))
    assert hand.of(Relocate)


# -- full disks ---------------------------------------------------------------------------------


def test_a_full_node_is_avoided_until_something_there_is_released():
    plan = PhysicalPlan((scan(0, 6), stage(1, [BlockLeaf(101, 0, SCHEMA)], 6)), {"out": 1})
    hand = Hand(plan, ("w1", "a"), ("w2", "b"))
    hand.fail(next(i.task for i in hand.running.values() if i.worker == "w1"), FailureKind.DISK)
    for name in [n for n, i in hand.running.items() if i.worker == "w1"]:
        hand.finish(hand.running[name].task)
    before = len(hand.of(Launch))
    hand.finish_stage(0)
    hand.finish_stage(1)
    assert hand.of(Finished)
    launched = hand.of(Launch)[before:]
    freed = [b.node for i in hand.of(Release) for b in i.blocks]
    assert "a" in freed  # in the end
    assert {i.worker for i in launched} == {"w2"}
    assert hand.scheduler.placement.full == set()


def test_a_release_elsewhere_makes_no_room():
    hand = Hand(PhysicalPlan((scan(0, 6),), {"out": 0}), ("w1", "a"), ("w2", "b"), streamed=(0,))
    hand.feed(Demand(0, 6))
    hand.fail(next(i.task for i in hand.running.values() if i.worker == "w1"), FailureKind.DISK)
    task = next(i.task for i in hand.running.values() if i.worker == "w2")
    hand.finish(task)
    hand.feed(OutputTaken(0, task.partitions[0].index))
    assert hand.of(Release)
    assert hand.scheduler.placement.full == {"a"}


def test_when_all_disks_are_full_the_run_fails_with_the_error():
    hand = Hand(PhysicalPlan((scan(0, 6),), {"out": 0}), ("w1", "a"), ("w2", "b"))
    error = OSError("no space left on b")
    hand.fail(next(i.task for i in hand.running.values() if i.worker == "w1"), FailureKind.DISK)
    assert hand.error is None
    hand.fail(next(i.task for i in hand.running.values() if i.worker == "w2"), FailureKind.DISK, error)
    assert hand.error is error


def test_a_full_node_is_tried_again_when_it_is_the_last():
    hand = Hand(PhysicalPlan((scan(0, 1),), {"out": 0}), ("w1", "a"), ("w2", "b"))
    first = next(iter(hand.running.values()))
    hand.fail(first.task, FailureKind.DISK)
    second = next(iter(hand.running.values()))
    assert second.worker != first.worker
    hand.leave(second.worker)
    assert [i.worker for i in hand.running.values()] == [first.worker]


def test_what_lies_on_a_full_node_is_worked_on_elsewhere_whatever_it_weighs():
    plan = PhysicalPlan((scan(0, 2), stage(1, [BlockLeaf(101, 0, SCHEMA)], 2)), {"out": 1})
    hand = Hand(plan, ("w1", "a"), ("w2", "b"), bytes_of=lambda s, i: 4000 * MB)
    hand.finish_stage(0)
    hand.finish(next(i.task for i in hand.running.values() if i.worker == "w2"))
    hand.fail(next(i.task for i in hand.running.values() if i.worker == "w1"), FailureKind.DISK)
    hand.finish_all()
    assert hand.of(Finished)


# -- leaving politely ---------------------------------------------------------------------------


def test_a_draining_worker_gets_nothing_new_and_its_blocks_are_read_where_they_went():
    hand = Hand(map_reduce(8, 2), ("w1", "a"), ("w2", "b"))
    hand.feed(WorkerDraining("w1"))
    before = len(hand.of(Launch))
    for name in [n for n, i in hand.running.items() if i.worker == "w1"]:
        hand.finish(hand.running[name].task)
    mine = tuple((0, p, 0) for p in range(8) if (b := hand.scheduler.stages[0].block(p)) and b.node == "a")
    assert mine
    hand.feed(BlocksMoved("a", "b", mine))
    hand.leave("w1", Cause.LEFT)
    hand.finish_all()
    assert {i.worker for i in hand.of(Launch)[before:]} == {"w2"}
    assert hand.of(Finished)
    assert len(hand.made) == len(set(hand.made)) == 10
    assert hand.scheduler.recovery.workers_lost == []
    assert hand.scheduler.recovery.blocks_lost == 0


def test_what_a_worker_could_not_hand_over_is_made_again():
    hand = Hand(map_reduce(4, 2), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    mine = [p for p in range(4) if hand.scheduler.stages[0].block(p).node == "a"]
    for name in [n for n, i in hand.running.items() if i.worker == "w1"]:
        hand.finish(hand.running[name].task)
    hand.feed(BlocksMoved("a", "b", ((0, mine[0], 0),)))
    hand.leave("w1", Cause.LEFT)
    hand.finish_all()
    assert hand.of(Finished)
    losses = [loss for loss in hand.scheduler.losses.all if loss.lost]
    assert [loss.cause for loss in losses] == ["left"]
    assert losses[0].minimum == losses[0].rerun


def test_a_block_that_moved_while_it_was_being_made_again_counts_as_returned():
    hand = Hand(map_reduce(2, 1), ("w1", "a"), ("w2", "b"))
    hand.finish_stage(0)
    task = hand.task_of(1, 0)
    hand.lacks(task, (0, 0, 0))
    source = next(s.node for s in task.partitions[0].slots[100] if s.partition == 0)
    rerun = hand.task_of(0, 0)
    out = hand.feed(BlocksMoved(source, "b" if source == "a" else "a", ((0, 0, 0),)))
    assert rerun.name in {i.name for i in out if isinstance(i, Cancel)}
    assert [i.name for i in out if isinstance(i, Relocate)] == [task.name]
    (loss,) = hand.scheduler.losses.all
    assert (loss.minimum, loss.returned, loss.rerun) == (1, 1, 0)


def test_stages_are_told_to_be_finished_once_each_time_they_are():
    hand = Hand(map_reduce(2, 1), ("w1", "a"))
    hand.finish_all()
    assert [i.stage for i in hand.of(StageFinished)] == [0, 1]
    assert len(hand.of(Finished)) == 1
