"""Worker processes are stopped while a run goes on: they are given up in seconds, replaced, and the rows are right."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import dask
import psutil
import pytest
from distributed import Client, Scheduler, SpecCluster

import headwater as hw
from headwater.runtime.cluster import CONFIG, start_local
from headwater.runtime.dask_executor import DaskExecutor
from headwater.runtime.scheduler_events import Cause, WorkerJoined, WorkerLeft

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(sys.platform != "linux", reason="beacons read /proc"),
]

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

WAIT = 60.0


class Heard:
    """The events of a cluster's membership, as a run would be told them."""

    def __init__(self, executor: DaskExecutor):
        self.joined: queue.SimpleQueue[WorkerJoined] = queue.SimpleQueue()
        self.left: queue.SimpleQueue[WorkerLeft] = queue.SimpleQueue()
        executor.membership.listen(self.hear)
        self.pids = {address: info["pid"] for address, info in infos(executor).items()}

    def hear(self, event: WorkerJoined | WorkerLeft) -> None:
        """Sort events: who comes in somebody's place may come before it is told that that one left."""
        if isinstance(event, WorkerJoined):
            self.joined.put(event)
        else:
            self.left.put(event)

    def departure(self) -> WorkerLeft:
        """Wait for the next one to leave."""
        return self.left.get(timeout=WAIT)

    def newcomer(self) -> WorkerJoined:
        """Wait for a worker that wasn't there at first."""
        while True:
            event = self.joined.get(timeout=WAIT)
            if event.address not in self.pids:
                return event

    def departures(self) -> list[WorkerLeft]:
        """Who left so far."""
        found = []
        while not self.left.empty():
            found.append(self.left.get())
        return found


def infos(executor: DaskExecutor) -> dict[str, dict]:
    client = executor.client

    async def ask(address: str) -> dict:
        return await client.rpc(address).headwater_info()

    return {worker.address: client.sync(ask, worker.address) for worker in executor.workers()}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def beacons_of(pid: int) -> list[psutil.Process]:
    """The living beacons of a process. A child may end while it is looked at."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and "beacon.py" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.fixture
def local() -> Iterator[DaskExecutor]:
    """An executor on two workers, each replaced when it dies; no test waits for those that another one killed."""
    cluster, client = start_local(2)
    with cluster, client:
        executor = DaskExecutor(client)
        until(lambda: len(executor.workers()) == 2)
        yield executor
        executor.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[tuple[DaskExecutor, list[subprocess.Popen]]]:
    """Two worker processes without nannies."""
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard_address": ":0", "dashboard": False, "host": "127.0.0.1", "port": 0},
    }
    with (
        dask.config.set(CONFIG),
        SpecCluster({}, scheduler, silence_logs=50) as cluster,
        Client(cluster.scheduler_address, set_as_default=False) as client,
    ):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        options = ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
        processes = [
            subprocess.Popen(
                command + options,
                env={**os.environ, "HEADWATER_SCRATCH": str(tmp_path / "scratch")},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]
        try:
            client.wait_for_workers(2, timeout=WAIT)
            executor = DaskExecutor(client)
            until(lambda: len(executor.workers()) == 2)
            yield executor, processes
            executor.close()
        finally:
            for process in processes:
                process.kill()
                process.wait()


def once(token: str) -> bool:
    try:
        os.close(os.open(token, os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


def totals(session: hw.Session, function: Callable) -> tuple[list[dict], object]:
    rows = hw.range(8000, partitions=8).map_batches(function, schema={"id": "int64", "key": "int64"})
    with session.run({"sums": rows.group_by("key").agg(total=hw.sum("id")).sort("key")}) as result:
        return result.table("sums").to_pylist(), result.report


EXPECTED = [{"key": key, "total": sum(range(key, 8000, 10))} for key in range(10)]


@pytest.mark.parametrize("stops", [1, 2])
def test_workers_that_stop_in_a_task_are_replaced_and_the_rows_are_right(local, tmp_path, stops):
    tokens = [str(tmp_path / f"token{number}") for number in range(stops)]

    def stop(batch: dict) -> dict:
        if any(once(token) for token in tokens):
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # another thread would take it later
        return {"id": batch["id"], "key": batch["id"] % 10}

    heard = Heard(local)
    with hw.Session(local.client.scheduler.address, progress=False, journal=False) as session:
        rows, _ = totals(session, stop)  # backup tasks may do the work before anybody is given up
    assert rows == EXPECTED
    for _ in range(stops):
        left = heard.departure()
        assert left.cause is Cause.HUNG
        assert left.silent >= 2.5
        until(lambda pid=heard.pids[left.address]: not psutil.pid_exists(pid))
    assert heard.newcomer()


def test_function_that_holds_the_interpreter_lock_is_left_alone(local, tmp_path):
    token = str(tmp_path / "token")

    def holds(batch: dict) -> dict:
        if 3500 in batch["id"] and once(token):
            ctypes.PyDLL(None).sleep(5)
        return {"id": batch["id"], "key": batch["id"] % 10}

    heard = Heard(local)
    with hw.Session(local.client.scheduler.address, progress=False, journal=False) as session:
        rows, report = totals(session, holds)
    assert rows == EXPECTED
    assert (report.recovery.workers_lost, report.recovery.tasks_retried) == (0, 0)
    assert heard.departures() == []


def test_worker_slowed_ten_times_is_left_alone(local):
    heard = Heard(local)
    pid = next(iter(heard.pids.values()))
    done = threading.Event()

    def slow_down() -> None:
        while not done.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.09)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)

    slowing = threading.Thread(target=slow_down)
    slowing.start()
    try:
        assert not done.wait(6)
    finally:
        done.set()
        slowing.join()
    assert heard.departures() == []
    assert {info["pid"] for info in infos(local).values()} == set(heard.pids.values())


def test_all_clients_of_a_stopped_worker_are_told(plain):
    executor, processes = plain
    with Client(executor.client.scheduler.address, set_as_default=False) as client:
        second = DaskExecutor(client)
        heard = [Heard(executor), Heard(second)]
        stopped = processes[0]
        stopped.send_signal(signal.SIGSTOP)
        left = [each.departure() for each in heard]
        second.close()
    assert {heard[0].pids[event.address] for event in left} == {stopped.pid}
    assert Cause.HUNG in [event.cause for event in left]  # the slower one may see it die
    assert stopped.wait(WAIT) == -signal.SIGKILL
    assert processes[1].poll() is None


def test_worker_that_nothing_is_heard_of_comes_back_as_a_new_one(local):
    heard = Heard(local)
    address, pid = next(iter(heard.pids.items()))
    (beacon,) = beacons_of(pid)
    beacon.suspend()
    os.kill(pid, signal.SIGSTOP)
    try:
        left = heard.departure()
    finally:
        os.kill(pid, signal.SIGCONT)
        beacon.resume()
    assert (left.address, left.cause) == (address, Cause.UNREACHABLE)
    assert left.silent >= 2.5
    assert heard.newcomer()
    until(lambda: not psutil.pid_exists(pid))


def test_driver_that_is_cut_off_blames_nobody(local, monkeypatch):
    heard = Heard(local)
    pid = next(iter(heard.pids.values()))
    (beacon,) = beacons_of(pid)
    asked: list[str] = []

    async def unregister(address: str, **rest: object) -> None:
        asked.append(address)
        raise OSError("no route to host")

    with monkeypatch.context() as patch:  # the workers aren't heard, and the scheduler doesn't answer
        patch.setattr(local.client.scheduler, "unregister", unregister, raising=False)
        beacon.suspend()
        os.kill(pid, signal.SIGSTOP)
        until(lambda: len(asked) >= 2)
        assert heard.departures() == []
    assert heard.departure().cause is Cause.UNREACHABLE  # now it is only the worker
    os.kill(pid, signal.SIGKILL)


def test_beacon_that_dies_alone_takes_nobody_along(local):
    heard = Heard(local)
    pid = next(iter(heard.pids.values()))
    (first,) = beacons_of(pid)
    first.kill()
    until(lambda: beacons_of(pid) not in ([], [first]))
    (second,) = beacons_of(pid)
    until(lambda: any(c.status == psutil.CONN_ESTABLISHED for c in second.net_connections()))
    assert heard.departures() == []
    os.kill(pid, signal.SIGSTOP)  # the new beacon is heeded
    assert heard.departure().cause is Cause.HUNG


def test_driver_that_was_held_up_itself_blames_nobody(local):
    heard = Heard(local)
    address, pid = next(iter(heard.pids.items()))
    info = infos(local)[address]
    held, go_on = threading.Event(), threading.Event()

    def hold_up() -> None:
        held.set()
        go_on.wait(WAIT)

    with socket.create_connection(info["beacon"], WAIT) as own, own.makefile("rb") as lines:
        own.sendall(info["beacon_token"].encode() + b"\n")
        idle = (float(line.split()[1]) for line in lines)
        local.client.loop.add_callback(hold_up)
        assert held.wait(WAIT)
        os.kill(pid, signal.SIGSTOP)
        assert any(seconds > 3 for seconds in idle)
        os.kill(pid, signal.SIGCONT)
        assert any(seconds < 1 for seconds in idle)
        go_on.set()  # what waits in the monitor's connection says that the worker is stopped
        assert all(next(idle) < 1 for _ in range(8))  # two seconds
    assert heard.departures() == []
    assert heard.pids == {each: found["pid"] for each, found in infos(local).items()}


def test_workers_in_the_drivers_process_need_no_beacon():
    cluster, client = start_local(1, processes=False)
    with cluster, client:
        executor = DaskExecutor(client)
        until(lambda: len(executor.workers()) == 1)
        assert [info["beacon"] for info in infos(executor).values()] == [None]
        executor.close()
