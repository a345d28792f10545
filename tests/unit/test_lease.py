"""Leases: one living driver a run, the next one free at once when it dies, the old one stopped when it is replaced."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from headwater.errors import FencedError, LeaseHeldError
from headwater.lineage import lease as module
from headwater.lineage.journal import Journal, list_runs, read
from headwater.lineage.lease import HELD_SECONDS, Lease, acquire
from headwater.lineage.run_folder import create, creates_atomically

RUN = "20261123-153012-x7k2"

#: takes the run, then does what it is told, line by line
DRIVER = """
import os, sys
from headwater.errors import FencedError
from headwater.lineage.journal import Journal
from headwater.lineage.lease import acquire
root, run = sys.argv[1:]
lease = acquire(root, run)
journal = Journal.create(root, {"pipeline": "rides"}, run=run)
print("held", flush=True)
for line in sys.stdin:
    try:
        if line == "append\\n":
            journal.append([["stage", 9, 9]])
        elif line == "renew\\n":
            lease.renew()
        elif line == "fork\\n" and os.fork() == 0:
            print("ok", flush=True)
            sys.stdin.read()
            os._exit(0)
        elif line == "fork\\n":
            continue
        elif line == "release\\n":
            lease.release()
        print("ok", flush=True)
    except FencedError as error:
        print("FencedError", error, flush=True)
"""


class OtherDriver:
    """Another process that holds the run."""

    def __init__(self, root: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(root), RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.answer() == "held"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()
        elif number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[OtherDriver]:
    driver = OtherDriver(tmp_path)
    yield driver
    driver.process.kill()
    driver.process.communicate()


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path)
    else:
        yield f"memory://{tmp_path}/runs"
        memory = fsspec.filesystem("memory")
        if memory.exists(str(tmp_path)):
            memory.rm(str(tmp_path), recursive=True)


def all_at_once(count: int, what: Callable[[int], object]) -> list[object]:
    """Call in so many threads at the same moment; returns results, or the errors raised."""
    barrier, answers = threading.Barrier(count), [None] * count

    def call(i: int) -> None:
        barrier.wait()
        try:
            answers[i] = what(i)
        except Exception as error:
            answers[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_a_run_has_one_holder_and_epochs_grow_by_one(root):
    for epoch in range(3):
        with acquire(root, RUN) as lease:
            assert (lease.epoch, lease.run) == (epoch, RUN)
            with pytest.raises(LeaseHeldError):
                acquire(root, RUN)
            lease.renew()
    lease.release()


def test_of_many_that_want_a_run_one_gets_it(root):
    for epoch in range(5):
        answers = all_at_once(6, lambda _: acquire(root, RUN))
        leases = [answer for answer in answers if isinstance(answer, Lease)]
        assert [lease.epoch for lease in leases] == [epoch]
        assert sum(isinstance(answer, LeaseHeldError) for answer in answers) == 5
        leases[0].release()


def test_of_many_that_steal_a_run_each_gets_an_epoch_and_the_last_one_stays(root):
    leases = all_at_once(6, lambda _: acquire(root, RUN, steal=True))
    assert sorted(lease.epoch for lease in leases) == list(range(6))
    for lease in leases:
        if lease.epoch < 5:
            with pytest.raises(FencedError, match="another driver took the run over"):
                lease.renew()
            lease.release()
        else:
            lease.renew()
    with pytest.raises(LeaseHeldError):
        acquire(root, RUN)


@pytest.mark.fault
def test_a_living_driver_is_named_and_a_killed_one_frees_the_run_at_once(other, tmp_path):
    with pytest.raises(LeaseHeldError) as held:
        acquire(tmp_path, RUN)
    for said in (RUN, f"process {other.process.pid} on {platform.node()}, since 2", "steal=True", "kill"):
        assert said in str(held.value)
    assert [entry.state for entry in list_runs(tmp_path)] == ["running"]
    other.send(signal.SIGKILL)
    assert [entry.state for entry in list_runs(tmp_path)] == ["died"]
    with acquire(tmp_path, RUN) as lease:
        assert lease.epoch == 1
        assert [entry.state for entry in list_runs(tmp_path)] == ["running"]
    assert [entry.state for entry in list_runs(tmp_path)] == ["died"]


@pytest.mark.fault
def test_a_stopped_driver_is_held_can_be_robbed_and_then_leaves_nothing(other, tmp_path):
    assert other.tell("append") == other.tell("renew") == "ok"
    other.send(signal.SIGSTOP)
    with pytest.raises(LeaseHeldError):
        acquire(tmp_path, RUN)
    lease = acquire(tmp_path, RUN, steal=True)
    assert lease.epoch == 1
    journal, records = Journal.resume(RUN, lease.epoch, tmp_path)
    assert [record[0] for record in records] == ["started", "stage", "resumed"]
    journal.append([["stage", 1, 1]])
    before = sorted(path.name for path in (tmp_path / RUN).iterdir())
    other.send(signal.SIGCONT)
    for line in ("append", "renew", "append"):
        answer = other.tell(line)
        assert answer.startswith("FencedError another driver took the run over")
        assert f"process {os.getpid()}" in answer
    assert sorted(path.name for path in (tmp_path / RUN).iterdir()) == before
    assert other.tell("release") == "ok"
    with pytest.raises(LeaseHeldError, match=str(os.getpid())):
        acquire(tmp_path, RUN)
    lease.renew()
    journal.append([["stage", 2, 2]])
    assert [r[1] for r in read(RUN, tmp_path) if r[0] == "stage"] == [9, 1, 2]


@pytest.mark.fault
def test_a_child_of_a_killed_driver_does_not_hold_the_run(other, tmp_path):
    assert other.tell("fork") == "ok"
    other.send(signal.SIGKILL)
    assert acquire(tmp_path, RUN).epoch == 1


def test_a_child_of_a_driver_does_not_hold_what_was_released(tmp_path):
    lease = acquire(tmp_path, RUN)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        lease.release()
        assert acquire(tmp_path, RUN).epoch == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_without_locks_a_lease_holds_as_long_as_it_is_renewed(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    hold_and_expire(str(tmp_path), monkeypatch)


def test_in_a_store_a_lease_holds_as_long_as_it_is_renewed(tmp_path, monkeypatch):
    hold_and_expire(f"memory://{tmp_path}", monkeypatch)


def hold_and_expire(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    lease = acquire(root, RUN)
    for _ in range(3):
        now += HELD_SECONDS - 1
        with pytest.raises(LeaseHeldError):
            acquire(root, RUN)
        lease.renew()
    now += HELD_SECONDS + 1
    second = acquire(root, RUN)
    assert second.epoch == 1
    with pytest.raises(FencedError):
        lease.renew()
    lease.release()
    with pytest.raises(LeaseHeldError):
        acquire(root, RUN)
    second.release()
    second.renew()  # says nothing any more
    assert acquire(root, RUN).epoch == 2


def test_without_hard_links_a_run_still_has_one_holder_and_one_writer(tmp_path, monkeypatch):
    def no_links(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with acquire(tmp_path, RUN):
        with pytest.raises(LeaseHeldError):
            acquire(tmp_path, RUN)
        first, second = Journal(tmp_path, RUN), Journal(tmp_path, RUN)
        first.append([["stage", 0, 1]])
        with pytest.raises(FencedError):
            second.append([["stage", 0, 2]])
    assert list(read(RUN, tmp_path)) == [["stage", 0, 1]]
    assert not list((tmp_path / RUN).glob("*.tmp"))


def test_a_record_that_is_being_written_counts_as_held_until_it_is_old(tmp_path):
    acquire(tmp_path, RUN).release()
    record = tmp_path / RUN / "epoch-000001.json"
    record.write_text('{"time": 18')
    with pytest.raises(LeaseHeldError, match="a process"):
        acquire(tmp_path, RUN)
    os.utime(record, (0, 0))
    assert acquire(tmp_path, RUN).epoch == 2


def test_a_journal_without_a_lease_counts_as_the_first_holder(root):
    journal = Journal.create(root, run=RUN)
    lease = acquire(root, RUN)
    assert lease.epoch == 1
    Journal.resume(RUN, lease.epoch, root)
    with pytest.raises(FencedError):
        journal.append([["stage", 0, 1]])


class Store(fsspec.AbstractFileSystem):
    """An object store by hand, with a conditional put that says no as S3 does."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.lose_answers = False

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create" and path in self.files:
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")
        self.files[path] = value
        if self.lose_answers:
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")

    def cat_file(self, path, **kwargs):
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]


class PlainStore(Store):
    """One that can only be asked first."""

    def pipe_file(self, path, value):
        self.files[path] = value

    def exists(self, path):
        return path in self.files


@pytest.mark.parametrize(("kind", "atomic"), [(Store, True), (PlainStore, False)])
def test_a_store_that_has_the_file_keeps_it(kind, atomic):
    store = kind()
    create(store, "/run/000000.json", b"mine")
    with pytest.raises(FileExistsError):
        create(store, "/run/000000.json", b"theirs")
    assert store.files == {"/run/000000.json": b"mine"}
    assert creates_atomically(store) is atomic


def test_a_put_whose_answer_was_lost_counts_and_one_that_failed_does_not():
    store = Store()
    store.lose_answers = True
    create(store, "/run/000000.json", b"mine")
    assert store.files == {"/run/000000.json": b"mine"}

    def refuse(path, value, mode):
        raise PermissionError("no")

    store.pipe_file = refuse
    with pytest.raises(PermissionError):
        create(store, "/run/000001.json", b"mine")
