"""A real beacon beside a real process that is stopped, slowed, killed, or holds its interpreter lock."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from headwater.runtime.workers.beacon_keeper import BeaconKeeper

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="beacons read /proc"),
]

KEEPER = Path(__file__).parents[2] / "runtime" / "workers" / "beacon_keeper.py"

#: a process with a beacon that does what it is told by lines: "lock SECONDS" sleeps with the interpreter lock held
PARENT = f"""
import ctypes, importlib.util, os, sys
spec = importlib.util.spec_from_file_location("beacon_keeper", {str(KEEPER)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
keeper = module.BeaconKeeper("127.0.0.1")
keeper.start(30)
print(keeper.process.pid, keeper.port, keeper.token, flush=True)
for line in sys.stdin:
    word, seconds = line.split()
    print(word, flush=True)
    if word == "lock":
        ctypes.PyDLL(None).sleep(int(seconds))
    elif word == "stop":
        keeper.stop()
"""


class Parent:
    """A process with a beacon."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        beacon, port, self.token = self.process.stdout.readline().split()
        self.beacon, self.port = psutil.Process(int(beacon)), int(port)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def tell(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == line.split()[0]

    def connect(self, token: str | None = None) -> Listener:
        return Listener(self.port, self.token if token is None else token)


class Listener:
    """A client of a beacon."""

    def __init__(self, port: int, token: str):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.lines = self.socket.makefile("rb")
        self.send(token)

    def send(self, line: str) -> None:
        self.socket.sendall(line.encode() + b"\n")

    def report(self) -> tuple[str, float]:
        state, idle = self.lines.readline().decode().split()
        return state, float(idle)

    def until(self, holds: Callable[[str, float], bool]) -> tuple[str, float]:
        """Read reports until one is as it should be; the beacon sends four a second."""
        for _ in range(80):
            report = self.report()
            if holds(*report):
                return report
        raise AssertionError(f"not within 80 lines; the last was {report}")

    def answer(self, line: str) -> str:
        """Send a command and return the answer, past the reports that come before it."""
        self.send(line)
        while True:
            words = self.lines.readline().decode().split()
            if len(words) == 1:
                return words[0]

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def gone(process: psutil.Process) -> bool:
    """Wait until a process has ended; one that only its new parent hasn't buried yet has."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def parent() -> Iterator[Parent]:
    parent = Parent()
    try:
        yield parent
    finally:
        parent.process.kill()
        parent.process.wait()
        for pipe in (parent.process.stdin, parent.process.stdout):
            pipe.close()
        assert gone(parent.beacon)


@pytest.fixture
def listener(parent: Parent) -> Iterator[Listener]:
    listener = parent.connect()
    yield listener
    listener.close()


def test_idle_process_lives(listener):
    reports = [listener.report() for _ in range(4)]
    assert all(state != "T" and idle < 1 for state, idle in reports)
    listener.until(lambda state, idle: state == "S")  # as soon as it has nothing more to do


def test_stopped_process_is_silent_until_it_goes_on(parent, listener):
    parent.signal(signal.SIGSTOP)
    state, _ = listener.until(lambda state, idle: idle > 1.2)
    assert state == "T"
    parent.signal(signal.SIGCONT)
    assert listener.until(lambda state, idle: idle < 1)[0] != "T"


def test_process_that_holds_the_interpreter_lock_lives(parent, listener):
    parent.tell("lock 3")
    reports = [listener.report() for _ in range(11)]  # more than 2.5 s
    assert all(state != "T" and idle < 1 for state, idle in reports)


def test_process_that_is_stopped_nine_tenths_of_the_time_lives(parent, listener):
    done = threading.Event()

    def slow_down() -> None:
        while not done.is_set():
            parent.signal(signal.SIGSTOP)
            time.sleep(0.09)
            parent.signal(signal.SIGCONT)
            time.sleep(0.01)

    slowing = threading.Thread(target=slow_down)
    slowing.start()
    try:
        reports = [listener.report() for _ in range(24)]  # some 6 s
        assert any(state == "T" for state, _ in reports)
        assert max(idle for _, idle in reports) < 1
        assert listener.answer("kill 1") == "alive"
    finally:
        done.set()
        slowing.join()


def test_stopped_process_is_killed_on_demand(parent, listener):
    parent.signal(signal.SIGSTOP)
    listener.until(lambda state, idle: idle > 1.2)
    assert listener.answer("kill 60") == "alive"  # not stopped for that long
    assert listener.answer("kill 1.2") == "killed"
    assert parent.process.wait(20) == -signal.SIGKILL
    assert gone(parent.beacon)


def test_process_that_is_not_stopped_is_never_killed(parent, listener):
    assert listener.answer("kill 0") == "alive"
    parent.signal(signal.SIGSTOP)
    listener.until(lambda state, idle: state == "T")
    assert listener.answer("kill 0") == "alive"  # a second is the least
    parent.signal(signal.SIGCONT)
    assert listener.answer("shoot 1") == "unknown"
    assert parent.process.poll() is None


def test_strangers_are_told_nothing(parent, listener):
    parent.signal(signal.SIGSTOP)
    listener.until(lambda state, idle: idle > 1.2)
    for token in ("", "guess", parent.token[:-1], "kill 1"):
        stranger = parent.connect(token)
        stranger.send("kill 1")
        with suppress(ConnectionResetError):
            assert stranger.lines.read() == b""
        stranger.close()
    assert parent.process.poll() is None
    assert listener.report()[0] == "T"


def test_several_clients_are_told_whatever_the_others_do(parent, listener):
    other, third = parent.connect(), parent.connect()
    for client in (other, third):
        client.until(lambda state, idle: state == "S")
    other.close()
    parent.signal(signal.SIGSTOP)
    for client in (listener, third):
        assert client.until(lambda state, idle: state == "T")
    third.close()


@pytest.mark.parametrize("beacon_stopped", [False, True], ids=["beacon runs", "beacon is stopped"])
def test_no_beacon_outlives_its_parent(parent, listener, beacon_stopped):
    if beacon_stopped:
        parent.beacon.suspend()
        while parent.beacon.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
    parent.signal(signal.SIGKILL)
    assert gone(parent.beacon)


def test_beacon_ends_when_it_is_told(parent):
    parent.tell("stop 0")
    assert gone(parent.beacon)
    assert parent.process.poll() is None


def test_beacon_that_dies_alone_is_started_again():
    keeper = BeaconKeeper("127.0.0.1")
    keeper.start(30)
    try:
        first = keeper.process
        first.kill()
        deadline = time.monotonic() + 20
        while (keeper.process is first or keeper.port is None) and time.monotonic() < deadline:
            time.sleep(0.01)
        again = Listener(keeper.port, keeper.token)
        assert again.report()[1] < 1
        again.close()
    finally:
        keeper.stop()
    assert keeper.process.wait(20) == -signal.SIGKILL


def test_interface_that_is_not_here_gives_no_beacon():
    keeper = BeaconKeeper("192.0.2.1")  # reserved for documentation
    keeper.start(30)
    assert keeper.port is None
    assert keeper.process.wait(20) != 0


def test_beacon_stays_small(parent, listener):
    listener.report()
    assert parent.beacon.memory_info().rss < 20 << 20
