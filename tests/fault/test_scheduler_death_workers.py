"""Dask's scheduler is killed: `headwater worker` processes, their blocks and what they run stay, and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from distributed import Client

from headwater.chaos.cluster import free_port
from headwater.runtime.nodes.node_store import NodeStore, read_identity

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def eventually(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Poll until there is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    pytest.fail(f"{found} gave nothing in {seconds} seconds")


class Place:
    """A port for a scheduler, and the processes around it."""

    def __init__(self, stack: ExitStack, folder: Path):
        self._stack, self._folder = stack, folder
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"

    def scheduler(self) -> subprocess.Popen:
        options = [
            f"--port={self.port}",
            "--host=127.0.0.1",
            "--no-dashboard",
            "--dashboard-address=127.0.0.1:0",
        ]
        return self.start("distributed.cli.dask_scheduler", *options)

    def worker(self, scratch: str) -> subprocess.Popen:
        options = ["--nthreads=1", f"--scratch={self._folder / scratch}", f"--name={scratch}"]
        return self.start("headwater.cli", "worker", self.address, *options)

    def start(self, module: str, *arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def client(self) -> Client:
        client = Client(self.address, timeout=60, set_as_default=False)
        self._stack.callback(client.close)
        return client


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(stack, tmp_path)


def who(client: Client) -> dict[str, dict[str, Any]]:
    """What each worker tells of itself, by its node."""

    async def ask() -> list[dict[str, Any]]:
        workers = (await client.scheduler.identity(n_workers=-1))["workers"]
        return [await client.rpc(address).headwater_info() for address in workers]

    return {info["node"]: info for info in client.sync(ask)}


def have(client: Client, address: str, run: str) -> list[tuple[int, int, int]]:
    async def ask() -> Any:
        return await client.rpc(address).headwater_blocks(run=run)

    return [tuple(block) for block in client.sync(ask)["blocks"]]


def publish(scratch: Path, run: str, partition: int) -> None:
    store = NodeStore(scratch)
    store.open_run(run)
    with store.create_block(run, 0, partition, 0) as file:
        file.stream.write(b"rows")
        file.publish()


def test_workers_outlive_their_scheduler_with_blocks_and_running_tasks(place: Place, tmp_path: Path):
    scheduler = place.scheduler()
    processes = {name: place.worker(name) for name in ("a", "b")}
    client = place.client()
    client.wait_for_workers(2, timeout=60)
    nodes = {read_identity(tmp_path / name): name for name in processes}
    before = who(client)
    for node, name in nodes.items():
        assert before[node]["pid"] == processes[name].pid
        publish(tmp_path / name, "r1", partition=ord(name))

    os.mkfifo(tmp_path / "go on")

    def wait_and_write(folder: Path) -> None:
        (folder / "started").touch()
        (folder / "go on").read_bytes()
        (folder / "done").touch()

    client.submit(wait_and_write, tmp_path, workers=["a"], key="long")
    eventually((tmp_path / "started").exists)

    scheduler.kill()
    scheduler.wait()
    client.close()
    place.scheduler()
    client = place.client()
    client.wait_for_workers(2, timeout=60)
    after = who(client)
    assert {node: info["pid"] for node, info in after.items()} == {
        node: info["pid"] for node, info in before.items()
    }
    for node, name in nodes.items():
        assert have(client, after[node]["address"], "r1") == [(0, ord(name), 0)]
    assert not (tmp_path / "done").exists()
    with open(tmp_path / "go on", "wb"):
        pass
    eventually((tmp_path / "done").exists)
    # and the worker whose thread was taken has one for new tasks
    assert client.submit(os.getpid, workers=["a"], pure=False).result(timeout=60) == processes["a"].pid


def test_worker_that_was_stopped_and_dropped_comes_back(place: Place, tmp_path: Path):
    place.scheduler()
    process = place.worker("a")
    client = place.client()
    client.wait_for_workers(1, timeout=60)
    ((node, before),) = who(client).items()
    publish(tmp_path / "a", "r1", partition=0)

    async def drop(dask_scheduler: Any, address: str) -> None:
        await dask_scheduler.remove_worker(address, stimulus_id="test", expected=True)

    process.send_signal(signal.SIGSTOP)
    client.run_on_scheduler(drop, address=before["address"])
    assert who(client) == {}
    process.send_signal(signal.SIGCONT)
    client.wait_for_workers(1, timeout=60)
    after = who(client)[node]
    assert after["pid"] == process.pid
    assert after["address"] != before["address"]
    assert have(client, after["address"], "r1") == [(0, 0, 0)]
