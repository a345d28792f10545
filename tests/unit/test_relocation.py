"""A waiting task's mailbox, tasks that go on with new places, admission of attempts, and their progress."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headwater.ops.kernel import Broadcast, Context, Kernel, Stream
from headwater.ops.source import Split
from headwater.planner.plan import BlockLeaf, BroadcastLeaf, Step
from headwater.runtime.nodes.blocks import BlockWriter
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import (
    CancelledTask,
    FetchFailedError,
    PartitionInput,
    Segment,
    StageProgram,
    Task,
    TaskResult,
)
from headwater.runtime.workers.admission import Admission
from headwater.runtime.workers.broadcast import BroadcastCache
from headwater.runtime.workers.fetch import Fetcher
from headwater.runtime.workers.relocation import Relocations, pack_segments, unpack_segments
from headwater.runtime.workers.run_task import run_task
from headwater.runtime.workers.task_progress import ProgressBoard, TaskProgress

SCHEMA = pa.schema([("x", pa.int64())])
TASK = Task("r1", 2, 7, 1, ())


def segment(partition: int, attempt: int = 0, node: str = "n1") -> Segment:
    return Segment(
        0, partition, attempt, node, f"runs/r1/blocks/s0-p{partition}-a{attempt}.arrow", 8, 100, 10
    )


def rows(partition: int) -> pa.Table:
    return pa.table({"x": range(partition * 100, partition * 100 + 50)}, SCHEMA)


def put(store: NodeStore, partition: int, attempt: int = 0, before: int = 0) -> Segment:
    """Publish a block of one segment with rows, behind ``before`` rows of another one."""
    store.open_run("r1")
    with store.create_block("r1", 0, partition, attempt) as file:
        writer = BlockWriter(file, SCHEMA, 2)
        writer.write(0, pa.table({"x": range(before)}, SCHEMA))
        writer.write(1, rows(partition))
        offsets, _ = writer.close()
        file.publish()
    start, stop = int(offsets[1]), int(offsets[2])
    return Segment(0, partition, attempt, store.node, file.path, start, stop - start, 50)


class Worker:
    """What tasks of one worker share, with a queue of announcements in the place of Dask."""

    def __init__(self, store: NodeStore, **patience: float):
        self.store, self.fetcher, self.broadcasts = store, Fetcher.local(store), BroadcastCache()
        self.announced: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.relocations = Relocations(lambda *said: self.announced.put(said), **patience)
        self.flags: dict[str, threading.Event] = {}

    def run(self, task: Task, operator: Any, progress: TaskProgress | None = None) -> TaskResult:
        program = StageProgram("r1", 2, "key", "read", operator, SCHEMA)
        flag = self.flags.setdefault(task.name, threading.Event())
        with self.relocations.mailbox(task, flag) as mailbox:
            shared = (self.broadcasts, mailbox, progress)
            return run_task(task, program, self.store, self.fetcher, "w1", flag, *shared)

    def read(self, result: TaskResult) -> list[int]:
        whole = [part.block.whole() for part in result.partitions if part.block]
        with self.fetcher.open(whole, {}) as inputs:
            return pa.concat_tables(inputs.tables(whole, SCHEMA))["x"].to_pylist()


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(NodeStore(tmp_path / "node"))


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    with ThreadPoolExecutor(4) as pool:
        yield pool


class TestMailbox:
    def wait(
        self, relocations: Relocations, lost: Sequence[Segment], flag: threading.Event | None = None
    ) -> Callable[[], Any]:
        def run() -> Any:
            with relocations.mailbox(TASK, flag or threading.Event()) as mailbox:
                return mailbox.relocate(lost)

        return run

    def test_the_announcement_names_task_and_blocks(self, worker: Worker, pool: ThreadPoolExecutor) -> None:
        lost = [segment(3), segment(1), segment(1)]
        future = pool.submit(self.wait(worker.relocations, lost))
        run, message = worker.announced.get(timeout=30)
        assert run == "r1"
        assert message == {
            "kind": "inputs lost",
            "stage": 2,
            "id": 7,
            "attempt": 1,
            "lost": [[0, 1, 0], [0, 3, 0]],
        }
        moved = {segment(1): segment(1, 1, "n2"), segment(3): segment(3, 1, "n2")}
        sent = unpack_segments(pack_segments(moved))
        assert worker.relocations.fill("r1", TASK.name, sent, {"n2": ["tcp://1"]})
        assert future.result(timeout=30) == (moved, {"n2": ("tcp://1",)})
        assert not worker.relocations.fill("r1", TASK.name, sent, {})

    def test_an_answer_that_came_before_the_question_counts(self, worker: Worker) -> None:
        with worker.relocations.mailbox(TASK, threading.Event()) as mailbox:
            mailbox.fill({segment(1): segment(1, 1, "n2")}, {"n2": ("tcp://1",)})
            assert mailbox.relocate([segment(1)])[0] == {segment(1): segment(1, 1, "n2")}
        assert worker.announced.empty()

    def test_an_old_answer_that_names_the_lost_place_doesn_t(
        self, worker: Worker, pool: ThreadPoolExecutor
    ) -> None:
        again = segment(1, 1, "n2")
        with worker.relocations.mailbox(TASK, threading.Event()) as mailbox:
            mailbox.fill({segment(1): segment(1)}, {})
            future = pool.submit(mailbox.relocate, [segment(1)])
            worker.announced.get(timeout=30)
            mailbox.fill({segment(1): again}, {})
            assert future.result(timeout=30)[0] == {segment(1): again}

    def test_a_second_loss_may_be_answered_by_first_place_or_last(
        self, worker: Worker, pool: ThreadPoolExecutor
    ) -> None:
        places = [segment(1, attempt) for attempt in range(4)]
        with worker.relocations.mailbox(TASK, threading.Event()) as mailbox:
            for known, lost, new in ((0, 0, 1), (0, 1, 2), (2, 2, 3)):
                future = pool.submit(mailbox.relocate, [places[lost]])
                worker.announced.get(timeout=30)
                mailbox.fill({places[known]: places[new]}, {})
                assert future.result(timeout=30)[0] == {places[lost]: places[new]}

    def test_waiting_ends_by_the_flag(self, worker: Worker, pool: ThreadPoolExecutor) -> None:
        flag = threading.Event()
        future = pool.submit(self.wait(worker.relocations, [segment(1)], flag))
        worker.announced.get(timeout=30)
        flag.set()
        with pytest.raises(CancelledTask):
            future.result(timeout=30)

    def test_a_silent_driver_is_reminded_and_given_up(self, tmp_path: Path) -> None:
        worker = Worker(NodeStore(tmp_path), patience_seconds=0.5, remind_seconds=0.05)
        with pytest.raises(FetchFailedError) as caught:
            self.wait(worker.relocations, [segment(1)])()
        assert caught.value.lost == ((0, 1, 0),)
        assert worker.announced.qsize() >= 2


@dataclass(frozen=True)
class WithSum(Kernel):
    """Adds the sum of the broadcast input."""

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        stream, whole = inputs
        total = whole.once("sum", lambda: pc.sum(whole.table()["x"]).as_py())
        for table in stream:
            yield table.set_column(0, "x", pc.add(table["x"], total))


class TestTasksThatGoOn:
    def reducer(self, segments: Sequence[Segment], id: int = 0, **more: Any) -> Task:
        given = tuple(PartitionInput(i, {0: (segment,)}) for i, segment in enumerate(segments))
        return Task("r1", 2, id, 0, given, **more)

    def answer(self, worker: Worker, task: Task, moved: dict[Segment, Segment]) -> None:
        assert worker.relocations.fill("r1", task.name, moved, {})

    def submit(self, pool: ThreadPoolExecutor, worker: Worker, task: Task, operator: Any) -> Future:
        return pool.submit(worker.run, task, operator)

    def test_a_lost_block_is_read_from_its_new_place(self, worker: Worker, pool: ThreadPoolExecutor) -> None:
        blocks = [put(worker.store, i) for i in range(4)]
        worker.store.delete_blocks([blocks[2].path])
        task = self.reducer(blocks)
        future = self.submit(pool, worker, task, BlockLeaf(0, 0, SCHEMA))
        _, message = worker.announced.get(timeout=30)
        assert message["lost"] == [[0, 2, 0]]
        self.answer(worker, task, {blocks[2]: put(worker.store, 2, attempt=3, before=1000)})
        result = future.result(timeout=30)
        assert worker.read(result) == pa.concat_tables([rows(i) for i in range(4)])["x"].to_pylist()
        assert result.metrics.local_bytes == sum(block.length for block in blocks)

    def test_what_is_lost_again_is_asked_for_again(self, worker: Worker, pool: ThreadPoolExecutor) -> None:
        blocks = [put(worker.store, i) for i in range(2)]
        task = self.reducer(blocks)
        worker.store.delete_blocks([blocks[1].path])
        future = self.submit(pool, worker, task, BlockLeaf(0, 0, SCHEMA))
        place = blocks[1]
        for attempt in (1, 2):
            _, message = worker.announced.get(timeout=30)
            assert message["lost"] == [[0, 1, place.attempt]]
            place = put(worker.store, 1, attempt)
            if attempt == 1:
                worker.store.delete_blocks([place.path])
            self.answer(worker, task, {blocks[1]: place})
        assert worker.read(future.result(timeout=30)) == [*range(50), *range(100, 150)]

    def test_a_place_that_isn_t_there_time_and_again_is_an_error(
        self, worker: Worker, pool: ThreadPoolExecutor
    ) -> None:
        gone = put(worker.store, 0)
        worker.store.delete_blocks([gone.path])
        task = self.reducer([gone])
        future = self.submit(pool, worker, task, BlockLeaf(0, 0, SCHEMA))
        while not future.done():
            try:
                worker.announced.get(timeout=0.1)
            except queue.Empty:
                continue
            self.answer(worker, task, {gone: gone})
        with pytest.raises(FetchFailedError):
            future.result()

    def test_all_that_wait_for_a_broadcast_say_so(self, worker: Worker, pool: ThreadPoolExecutor) -> None:
        small = [put(worker.store, i) for i in range(2)]
        main = put(worker.store, 5)
        worker.store.delete_blocks([small[0].path])
        operator = Step(WithSum(), (BlockLeaf(0, 0, SCHEMA), BroadcastLeaf(1, 1, SCHEMA)), SCHEMA)
        tasks = [self.reducer([main], id, broadcast={1: tuple(small)}) for id in range(3)]
        futures = [self.submit(pool, worker, task, operator) for task in tasks]
        said = [worker.announced.get(timeout=30)[1] for _ in tasks]
        assert sorted(message["id"] for message in said) == [0, 1, 2]
        assert all(message["lost"] == [[0, 0, 0]] for message in said)
        new = put(worker.store, 0, attempt=1)
        for task in tasks:
            worker.relocations.fill("r1", task.name, {small[0]: new}, {})
        total = sum(range(50)) + sum(range(100, 150))
        for future in futures:
            assert worker.read(future.result(timeout=30)) == [x + total for x in range(500, 550)]

    def test_one_that_waits_for_another_s_broadcast_can_be_cancelled(
        self, worker: Worker, pool: ThreadPoolExecutor
    ) -> None:
        small, main = put(worker.store, 0), put(worker.store, 5)
        worker.store.delete_blocks([small.path])
        operator = Step(WithSum(), (BlockLeaf(0, 0, SCHEMA), BroadcastLeaf(1, 1, SCHEMA)), SCHEMA)
        tasks = [self.reducer([main], id, broadcast={1: (small,)}) for id in range(2)]
        futures = [self.submit(pool, worker, task, operator) for task in tasks]
        for _ in tasks:
            worker.announced.get(timeout=30)
        for task, future in zip(tasks, futures):
            worker.flags[task.name].set()
            with pytest.raises(CancelledTask):
                future.result(timeout=30)

    def test_without_a_mailbox_a_loss_is_an_error(self, worker: Worker) -> None:
        gone = put(worker.store, 0)
        worker.store.delete_blocks([gone.path])
        program = StageProgram("r1", 2, "key", "read", BlockLeaf(0, 0, SCHEMA), SCHEMA)
        with pytest.raises(FetchFailedError):
            run_task(self.reducer([gone]), program, worker.store, worker.fetcher, "w1")


class TestAdmission:
    def enter(
        self, admission: Admission, epoch: int = 0, run: str = "r1", attempt: int = 0
    ) -> threading.Event:
        with admission.enter(replace(TASK, run=run, epoch=epoch, attempt=attempt)) as flag:
            return flag

    def test_an_older_driver_s_tasks_are_refused(self) -> None:
        admission = Admission()
        self.enter(admission, epoch=2)
        with pytest.raises(CancelledTask, match="replaced"):
            self.enter(admission, epoch=1)
        self.enter(admission, epoch=0, run="r2")
        assert admission.fence("r1", 1) == 2

    def test_a_newer_driver_stops_what_older_ones_started(self) -> None:
        admission = Admission()
        with (
            admission.enter(replace(TASK, epoch=1)) as old,
            admission.enter(replace(TASK, epoch=1, run="r2")) as other,
            admission.enter(replace(TASK, epoch=2, attempt=20_000)) as new,
        ):
            assert old.is_set()
            assert admission.fence("r1", 2) == 2
            assert not new.is_set()
            assert admission.fence("r1", 3) == 3
            assert new.is_set()
            assert not other.is_set()

    def test_a_run_that_is_over_takes_no_tasks_until_it_goes_on(self) -> None:
        admission = Admission()
        with admission.enter(replace(TASK, epoch=1)) as flag:
            assert admission.close("r1")
            assert flag.is_set()
        with pytest.raises(CancelledTask, match="over"):
            self.enter(admission, epoch=1)
        self.enter(admission, epoch=2)
        self.enter(admission, epoch=2)

    def test_a_driver_that_was_replaced_can_t_end_the_run(self) -> None:
        admission = Admission()
        admission.fence("r1", 2)
        assert not admission.counts("r1", 1)
        assert not admission.close("r1", 1)
        self.enter(admission, epoch=2)
        assert admission.counts("r1", 2)
        assert admission.close("r1", 2)

    def test_cancelled_before_it_began(self) -> None:
        admission = Admission()
        admission.cancel("r1", [TASK.name])
        with pytest.raises(CancelledTask):
            self.enter(admission, attempt=TASK.attempt)
        self.enter(admission, attempt=2)
        assert admission.running() == []


class TestProgress:
    def test_shares_of_several_partitions_and_inputs(self) -> None:
        progress = TaskProgress(2)
        slots = {0: Split(0, 100, 100), 1: (segment(0), segment(1)), 2: Split(0, None, 100)}
        seen = [progress.share]
        progress.begin(PartitionInput(0, slots))
        for slot, count, size in (
            (0, 50, 999),
            (1, 10, 999),
            (2, 7, 50),
            (1, 10, 1),
            (0, 50, 0),
            (2, 1, 999),
        ):
            progress.advance(slot, count, size)
            seen.append(progress.share)
        assert seen == pytest.approx([0, 0.0625, 0.1875, 0.25, 0.375, 0.4375, 0.475])
        progress.end()
        assert progress.share == 0.5
        progress.begin(PartitionInput(1, {0: Split(1, None, 0)}))
        progress.advance(0, 1000, 1000)
        assert progress.share == pytest.approx(0.975)
        progress.end()
        assert progress.share == 1

    def test_it_never_falls_and_never_passes_one(self) -> None:
        progress = TaskProgress(1)
        progress.begin(PartitionInput(0, {0: Split(0, 10, 80), 1: ()}))
        for _ in range(5):
            before = progress.share
            progress.advance(0, 10, 80)
            assert before <= progress.share <= 0.95
        progress.advance(9, 10, 80)
        progress.end()
        progress.end()
        assert progress.share == 1

    def test_the_board_shows_what_runs(self) -> None:
        board, other = ProgressBoard(), replace(TASK, attempt=2)
        with board.follow(TASK) as progress, board.follow(other), board.follow(replace(TASK, run="r2")):
            progress.begin(PartitionInput(0, {0: Split(0, 100, 800)}))
            progress.advance(0, 30, 0)
            assert board.of("r1") == {TASK.name: pytest.approx(0.3), other.name: 0}
        assert board.of("r1") == {}

    def test_a_task_reports_as_it_reads(self, worker: Worker) -> None:
        seen: list[float] = []

        @dataclass(frozen=True)
        class Watching(Kernel):
            def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
                for table in inputs[0]:
                    seen.append(progress.share)
                    yield table

        blocks = [put(worker.store, i) for i in range(4)]
        given = (PartitionInput(0, {0: tuple(blocks[:2])}), PartitionInput(1, {0: tuple(blocks[2:])}))
        progress = TaskProgress(2)
        worker.run(Task("r1", 2, 0, 0, given), Step(Watching(), (BlockLeaf(0, 0, SCHEMA),), SCHEMA), progress)
        assert seen == pytest.approx([0.25, 0.475, 0.75, 0.975])
        assert progress.share == 1
