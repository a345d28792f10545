"""Tables go from one process's device memory to another's; what can't be copied so comes to nothing."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.lineage.owner import this_process
from headwater.ops.device import ipc, memory
from headwater.ops.device.cache import BlockKey
from headwater.ops.device.ipc import IpcRefusedError, Shared, copied, share
from headwater.ops.device.table import to_arrow, to_device
from headwater.runtime.task import CancelledTask, Segment
from headwater.runtime.workers import device_borrowing
from headwater.runtime.workers.device_borrowing import DeviceBorrowing

from .conftest import EMULATION, real_cupy

RNG = np.random.default_rng(3)
KEY = BlockKey("run", 4, 2, 0)
#: where the segments of the block lie on the host, if it had a thousand bytes a segment
OFFSETS = [100, 1100, 1100, 2100, 3100]


def rows_of(count: int) -> pa.Table:
    nulls = RNG.random(count) < 0.3
    floats = RNG.normal(size=count)
    floats[: min(count, 3)] = [np.nan, -0.0, np.inf][: min(count, 3)]
    return pa.table(
        {
            "i": pa.array(RNG.integers(-(2**62), 2**62, count), mask=nulls),
            "f": pa.array(floats, from_pandas=False),
            "b": pa.array(RNG.random(count) < 0.5, mask=RNG.random(count) < 0.5),
            "s": pa.array(RNG.choice(["", "a", "bcd"], count).tolist(), pa.string(), mask=nulls),
            "c": pa.array(RNG.choice(["x", "y"], count).tolist(), pa.string()).dictionary_encode(),
            "n": pa.nulls(count, pa.int16()),
            "d": pa.array(
                [Decimal(int(v)) / 100 for v in RNG.integers(-999, 999, count)], pa.decimal128(9, 2)
            ),
            "t": pa.array(RNG.integers(0, 9999, count).astype(np.int32), pa.date32()),
        }
    )


SEGMENTS = [[rows_of(1000), rows_of(1)], [], [rows_of(3000)], [rows_of(17), rows_of(5000)]]
SCHEMA = SEGMENTS[0][0].schema


def segment(number: int, length: int | None = None) -> Segment:
    start, stop = OFFSETS[number], OFFSETS[number + 1]
    size = stop - start if length is None else length
    rows = sum(table.num_rows for table in SEGMENTS[number])
    return Segment(KEY.stage, KEY.partition, KEY.attempt, "node", "path", start, size, rows)


def wanted(*numbers: int) -> list[tuple[int, ...]]:
    return [device_borrowing._wanted(segment(number)) for number in numbers]


class Lender:
    """The process of `lender.py`."""

    def __init__(self, folder: Path):
        where = [] if real_cupy() else [str(EMULATION)]
        path = os.pathsep.join([*where, os.environ.get("PYTHONPATH", "")])
        with Listener(str(folder / "socket")) as listener:
            command = [sys.executable, str(Path(__file__).with_name("lender.py")), str(folder / "socket")]
            self.process = subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": path, "HEADWATER_BACKEND": "cupy"}
            )
            self.connection = listener.accept()
        self._lock = threading.Lock()

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self.connection.send((name, args, kwargs))
            answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def lend(self, *numbers: int, token: str = "token", **others: Any) -> Any:
        request = {"run": "run", "wanted": wanted(*numbers), "borrower": this_process().record()}
        return self("ask", "headwater_lend", token=token, **{**request, **others})

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.connection.close()
        self.process.wait(20)


@pytest.fixture(scope="module")
def shared_lender(xp, tmp_path_factory) -> Iterator[Lender]:
    lender = Lender(tmp_path_factory.mktemp("lender"))
    yield lender
    lender.close()


@pytest.fixture
def lender(shared_lender) -> Iterator[Lender]:
    """One that has the block, and has lent nothing."""
    assert shared_lender("put", KEY, SEGMENTS, OFFSETS)
    yield shared_lender
    shared_lender("forget", "run")
    assert shared_lender("leases") == shared_lender("kept_bytes") == 0
    settled(lambda: not ipc._open)


@pytest.fixture
def other_lender(xp, tmp_path) -> Iterator[Lender]:
    """One that may be broken."""
    lender = Lender(tmp_path)
    assert lender("put", KEY, SEGMENTS, OFFSETS)
    yield lender
    lender.close()
    settled(lambda: not ipc._open)


def settled(condition: Callable[[], Any]) -> None:
    """Wait for what is about to happen."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("nothing happened")


def copies(shared: Shared, numbers: list[int], xp: Any) -> list:
    """Copy groups, and unmap their memory."""
    tables, mapped = copied(shared, SCHEMA, numbers, xp)
    mapped.close()
    return tables


def check(tables: list, number: int) -> None:
    expected = pa.concat_tables(SEGMENTS[number]) if SEGMENTS[number] else SCHEMA.empty_table()
    got = pa.concat_tables([SCHEMA.empty_table(), *map(to_arrow, tables)])
    assert got.schema.equals(SCHEMA)
    for name in SCHEMA.names:
        mine, theirs = got[name].combine_chunks(), expected[name].combine_chunks()
        if pa.types.is_floating(theirs.type):
            np.testing.assert_array_equal(mine.to_numpy().view(np.int64), theirs.to_numpy().view(np.int64))
        else:
            assert mine.cast(pa.string()).equals(theirs.cast(pa.string())), name


# -- handles -----------------------------------------------------------------------------------------


def test_tables_of_another_process_are_copied(lender, xp):
    reply = lender.lend(2, 0, 1, 3)
    assert reply["found"] == [0, 1, 3]
    shared: Shared = pickle.loads(reply["shared"])
    assert len(shared.dictionaries) == 2 * 5
    groups = copies(shared, [2, 0, 1], xp)
    assert lender("ask", "headwater_take_back", token="token")["held"]
    lender("clear")  # what was copied is this process's
    for tables, number in zip(groups, [3, 2, 0]):
        assert all(isinstance(column.values, xp.ndarray) for table in tables for column in table.columns)
        check(tables, number)


def test_threads_map_an_allocation_once(lender, xp):
    shared = pickle.loads(lender.lend(0, 2, 3)["shared"])
    found: list[Any] = [None] * 6
    mapped: list[Any] = [None] * 6
    ready = threading.Barrier(6)

    def copy(place: int) -> None:
        ready.wait()
        found[place], mapped[place] = copied(shared, SCHEMA, [place % 3], xp)

    threads = [threading.Thread(target=copy, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, tables in enumerate(found):
        check(tables[0], [0, 2, 3][place % 3])
        assert ipc._open
        mapped[place].close()
        mapped[place].close()


def test_what_cuda_refuses(lender, xp, monkeypatch):
    there = to_device(SEGMENTS[0][0], xp)
    with pytest.raises(IpcRefusedError):  # a process can't map its own
        copies(share([[there]], SCHEMA, xp), [0], xp)
    with pytest.raises(IpcRefusedError, match="on the host"):
        share([[to_device(SEGMENTS[0][0], np)]], SCHEMA, np)
    shared = pickle.loads(lender.lend(0)["shared"])
    monkeypatch.setattr(xp.cuda.runtime, "ipcOpenMemHandle", refusing(xp))
    with pytest.raises(IpcRefusedError):
        copies(shared, [0], xp)


def test_a_device_without_room_is_told_from_a_refusal(lender, xp, monkeypatch):
    shared = pickle.loads(lender.lend(0)["shared"])

    def full(*args: Any) -> None:
        raise xp.cuda.memory.OutOfMemoryError(64, 0)

    monkeypatch.setattr(xp, "empty", full)
    with pytest.raises(xp.cuda.memory.OutOfMemoryError):
        copies(shared, [0], xp)


def refusing(xp: Any) -> Any:
    def refuse(*args: Any) -> int:
        raise xp.cuda.runtime.CUDARuntimeError(217)

    return refuse


# -- who lends ---------------------------------------------------------------------------------------


def test_a_lease_outlives_the_cache_and_ends_with_its_run(lender, xp):
    shared = pickle.loads(lender.lend(3)["shared"])
    lender("clear")
    assert lender.lend(3, token="other")["found"] == []
    check(copies(shared, [0], xp)[0], 3)
    assert lender("leases") == 1
    lender("forget", "another")
    assert lender("leases") == 1
    lender("forget", "run")
    assert lender("leases") == 0
    assert not lender("ask", "headwater_take_back", token="token")["held"]
    if real_cupy() is None:  # a real device may keep the memory in its pool
        lender("clear")
        with pytest.raises(IpcRefusedError):
            copies(shared, [0], xp)


def test_what_is_mapped_of_before_a_lease_was_broken_is_not_read_again(lender, xp):
    """What the owner allocates after that may have the handle of what it has freed."""
    before = pickle.loads(lender.lend(2, token="broken")["shared"])
    tables, mapped = copied(before, SCHEMA, [0], xp)
    check(tables[0], 2)
    lender("forget", "run")  # with the lease, whose memory is mapped still
    assert lender("put", KEY, SEGMENTS, OFFSETS)
    now = pickle.loads(lender.lend(2)["shared"])
    assert now.age != before.age
    with pytest.raises(ipc.OutdatedError):
        copied(replace(now, handles=before.handles), SCHEMA, [0], xp)
    mapped.close()
    check(copies(now, [0], xp)[0], 2)
    assert lender("ask", "headwater_take_back", token="token")["held"]
    assert (
        pickle.loads(lender.lend(2)["shared"]).age == now.age
    )  # a lease that was given back breaks no promise
    assert lender("ask", "headwater_take_back", token="token")["held"]


def test_a_lease_ends_with_its_borrower(lender):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        import psutil

        record = {**this_process().record(), "pid": child.pid}
        record["started"] = psutil.Process(child.pid).create_time()
        assert lender.lend(0, token="a", borrower=record)["found"] == [0]
        assert lender.lend(0, token="b")["found"] == [0]
        assert lender("sweep") == 2
    finally:
        child.kill()
        child.wait()
    assert lender("sweep") == 1
    assert not lender("ask", "headwater_take_back", token="a")["held"]
    assert lender("ask", "headwater_take_back", token="b")["held"]


def test_who_can_not_borrow_is_told_so(lender):
    me = this_process().record()
    assert "never" in lender.lend(0, borrower={**me, "machine": "elsewhere"})
    assert lender.lend(0, run="other") == {"status": "OK", "found": [], "nothing": True}
    stage = [device_borrowing._wanted(segment(0)._replace(partition=9))]
    assert lender.lend(0, wanted=stage) == {"status": "OK", "found": [], "nothing": False}
    for change in ({"offset": 99}, {"length": 999}, {"rows": 7}, {"attempt": 1}):  # cut otherwise there
        other = [device_borrowing._wanted(segment(0)._replace(**change))]
        assert lender.lend(0, wanted=other)["found"] == []


# -- who borrows -------------------------------------------------------------------------------------


class Peers:
    """Reaches lenders by their pipes; stands for Dask's connections."""

    def __init__(self, lenders: dict[str, Any]):
        self.lenders, self.asked = lenders, []
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    async def ask(self, addresses: list[str], causes: list[BaseException], op: str, **request: Any) -> Any:
        self.asked.append((addresses[0], op))
        lender = self.lenders[addresses[0]]
        try:
            return await asyncio.to_thread(lender, "ask", op, **request)
        except (OSError, EOFError):
            return None

    async def finish(self) -> None:
        """Wait for all that is under way."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture
def borrowing(monkeypatch) -> Iterator[Any]:
    """Makes a borrower that knows lenders by address."""
    monkeypatch.setattr(device_borrowing, "LEAST_BYTES", 1)
    monkeypatch.setattr(device_borrowing, "_LINGER_SECONDS", 0.01)
    made: list[Peers] = []

    def make(**lenders: Any) -> DeviceBorrowing:
        made.append(Peers(lenders))
        borrower = DeviceBorrowing()
        borrower.attach(made[-1], "me")  # type: ignore[arg-type]
        return borrower

    yield make
    for peers in made:
        asyncio.run_coroutine_threadsafe(peers.finish(), peers.loop).result(20)
        peers.loop.call_soon_threadsafe(peers.loop.stop)


def borrow(borrower: DeviceBorrowing, *numbers: int, siblings: str = "me a b", run: str = "run") -> dict:
    segments = [segment(number) for number in numbers]
    return borrower.borrow(run, segments, SCHEMA, siblings.split(), threading.Event())


def test_rows_are_borrowed_and_given_back(lender, borrowing):
    borrower = borrowing(a=lender, b=lambda *args, **kwargs: {"never": "no device"})
    found = borrow(borrower, 0, 2, 3)
    assert list(found) == [segment(0), segment(2), segment(3)]
    for number in (0, 2, 3):
        check(found[segment(number)], number)
    settled(lambda: lender("leases") == 0)
    assert borrower.never == {"b": "no device"}
    size = sum(table.nbytes for tables in found.values() for table in tables)
    assert borrower.counts == {"borrowed": 3, "borrowed_bytes": size}
    borrow(borrower, 0)
    assert ("me", "headwater_lend") not in borrower._peers.asked
    assert borrower._peers.asked.count(("b", "headwater_lend")) == 1


def test_memory_stays_mapped_for_who_reads_next(lender, xp, borrowing, monkeypatch):
    opened: list[bytes] = []
    open_handle = xp.cuda.runtime.ipcOpenMemHandle
    monkeypatch.setattr(xp.cuda.runtime, "ipcOpenMemHandle", lambda h: opened.append(h) or open_handle(h))
    monkeypatch.setattr(device_borrowing, "_LINGER_SECONDS", 60.0)
    borrower = borrowing(a=lender)
    for _ in range(3):
        check(borrow(borrower, 3, siblings="a")[segment(3)], 3)
    assert len(opened) == len(set(opened)) > 0
    assert lender("leases") == 3
    lender("clear")  # what is mapped must be kept
    borrower.forget("another")
    assert lender("leases") == 3
    borrower.forget("run")
    settled(lambda: lender("leases") == 0)
    assert not ipc._open


def test_a_segment_that_two_have_is_copied_once(lender, borrowing):
    borrower = borrowing(a=lender, b=lambda name, op, **request: lender(name, op, **{**request, "token": op}))
    assert len(borrow(borrower, 0, 3)) == 2
    assert borrower.counts["borrowed"] == 2
    lender("ask", "headwater_take_back", token="headwater_lend")


def test_a_sibling_without_blocks_of_a_stage_is_asked_once(lender, borrowing):
    borrower = borrowing(a=lender)
    for _ in range(3):
        assert borrow(borrower, 0, siblings="a", run="other") == {}
    assert len(borrower._peers.asked) == 1
    borrower.forget("other")
    assert borrow(borrower, 0, siblings="a", run="other") == {}
    assert len(borrower._peers.asked) == 2


def test_other_columns_and_arrays_with_gaps_are_not_borrowed(lender, xp, borrowing):
    borrower, other = borrowing(a=lender), SCHEMA.set(0, pa.field("i", pa.float64()))
    for schema, found in [(other, 0), (SCHEMA.with_metadata({"a": "b"}), 1)]:
        assert len(borrower.borrow("run", [segment(0)], schema, ["a"], threading.Event())) == found
    assert borrower.never == {}
    table = to_device(SEGMENTS[0][0], xp)
    gaps = replace(table.columns[0], values=table.columns[0].values[::2])
    assert ipc.can_share([table])
    assert not ipc.can_share([replace(table, columns=(gaps,))])


def test_little_is_not_asked_for(lender, borrowing, monkeypatch):
    borrower = borrowing(a=lender)
    monkeypatch.setattr(device_borrowing, "LEAST_BYTES", 1001)
    assert borrow(borrower, 0) == {}
    monkeypatch.setattr(device_borrowing, "_MOST_BYTES", 999)
    assert borrow(borrower, 0, 2) == {}
    assert not borrower._peers.asked


def test_after_a_refusal_nobody_asks_again(other_lender, xp, borrowing, monkeypatch):
    shared = pickle.loads(other_lender.lend(0, token="early")["shared"])
    assert other_lender("ask", "headwater_take_back", token="early")["held"]
    borrower = borrowing(a=other_lender)
    with monkeypatch.context() as patch:
        patch.setattr(xp.cuda.runtime, "ipcOpenMemHandle", refusing(xp))
        assert borrow(borrower, 0, siblings="a") == {}
    settled(lambda: other_lender("leases") == 0)
    assert borrower.counts["failed"] == 1
    assert borrow(borrower, 0, siblings="a") == {}
    assert [op for _, op in borrower._peers.asked] == ["headwater_lend", "headwater_take_back"]
    other_lender("break_driver")
    other = borrowing(a=other_lender)
    assert borrow(other, 0, siblings="a") == borrow(other, 0, siblings="a") == {}
    assert "cudaErrorInvalidValue" in other.never["a"]
    assert len(other._peers.asked) == 1
    other_lender.kill()  # what a dead process has exported isn't there any more, either
    with pytest.raises(IpcRefusedError):
        copies(shared, [0], xp)


def test_a_device_that_is_full_borrows_nothing_now(lender, xp, borrowing, monkeypatch):
    borrower = borrowing(a=lender)
    with monkeypatch.context() as patch:

        def full(*args: Any) -> None:
            raise xp.cuda.memory.OutOfMemoryError(64, 0)

        patch.setattr(memory, "_releasers", [])
        patch.setattr(xp, "empty", full)
        assert borrow(borrower, 0, siblings="a") == {}
    settled(lambda: lender("leases") == 0)
    assert borrower.counts["failed"] == 1
    assert len(borrow(borrower, 0, siblings="a")) == 1


def test_what_was_not_kept_until_it_was_copied_is_not_used(lender, borrowing):
    def hasty(name: str, op: str, **request: Any) -> Any:
        if op == "headwater_lent":
            lender("forget", "run")  # as if the lease had ended meanwhile
        return lender(name, op, **request)

    borrower = borrowing(a=hasty)
    assert borrow(borrower, 0, siblings="a") == {}
    assert borrower.counts["failed"] == 1


def test_an_owner_that_dies_is_left_alone(other_lender, borrowing):
    def dying(name: str, op: str, **request: Any) -> Any:
        if op == "headwater_lent":
            other_lender.kill()
        return other_lender(name, op, **request)

    borrower = borrowing(a=dying)
    for _ in range(2):
        assert borrow(borrower, 0, 2, siblings="a") == {}
    asked = [op for _, op in borrower._peers.asked if op != "headwater_take_back"]
    assert asked == ["headwater_lend", "headwater_lent"]
    assert borrower.counts["borrowed"] == 0


def test_a_silent_owner_is_not_waited_for_long(lender, borrowing, monkeypatch):
    monkeypatch.setattr(device_borrowing, "_ANSWER_SECONDS", 0.05)
    answer = threading.Event()
    borrower = borrowing(a=lambda *args, **kwargs: answer.wait(20))
    assert borrow(borrower, 0, siblings="a") == {}
    assert borrow(borrower, 0, siblings="a") == {}
    assert borrower.counts["silent"] == 1
    answer.set()


@pytest.mark.parametrize("moment", ["headwater_lend", "headwater_lent"])
def test_a_cancelled_task_gives_back_what_it_borrowed(lender, borrowing, moment):
    answer, cancelled = threading.Event(), threading.Event()

    def slow(name: str, op: str, **request: Any) -> Any:
        reply = lender(name, op, **request)
        if op == moment:
            cancelled.set()
            answer.wait(20)
        return reply

    borrower = borrowing(a=slow)
    with pytest.raises(CancelledTask):
        borrower.borrow("run", [segment(0)], SCHEMA, ["a"], cancelled)
    settled(lambda: lender("leases") == 0)
    answer.set()
