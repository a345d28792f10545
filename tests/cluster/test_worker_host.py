"""`headwater worker`: leaving politely, handing over blocks, and a supervisor that keeps processes running."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pyarrow as pa
import pytest
from distributed import Client, LocalCluster

from headwater.cli import USAGE, execute
from headwater.lineage.owner import this_process
from headwater.runtime.nodes.block_index import BlockLabel, encode
from headwater.runtime.nodes.blocks import BlockWriter
from headwater.runtime.nodes.kept import Kept
from headwater.runtime.nodes.node_store import NodeStore, read_identity
from headwater.runtime.workers.handover import RUNS_TOPIC, WORKERS_TOPIC
from headwater.runtime.workers.parcels import Parcel, batches, collect, share_out
from headwater.runtime.workers.supervisor import supervise
from headwater.runtime.workers.worker_host import NO_SCHEDULER

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def eventually(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Poll until there is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    pytest.fail(f"nothing came in {seconds} seconds")


class Place:
    """A scheduler, and how to start processes around it that end with the test."""

    def __init__(self, stack: ExitStack, folder: Path):
        self._stack, self._folder = stack, folder
        scheduler = LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=None)
        self.address = stack.enter_context(scheduler).scheduler_address
        self.client = Client(self.address, timeout=60, set_as_default=False)
        stack.callback(self.client.close)

    def host(self, scratch: str, *options: str) -> subprocess.Popen:
        folder = f"--scratch={self._folder / scratch}"
        return self._start("headwater.cli", "worker", self.address, "--nthreads=1", folder, *options)

    def plain_worker(self, scratch: str, *options: str) -> subprocess.Popen:
        local = f"--local-directory={self._folder / scratch}-dask"
        arguments = [self.address, "--nthreads=1", "--no-dashboard", local, *options]
        return self._start("distributed.cli.dask_worker", *arguments, scratch=str(self._folder / scratch))

    def _start(self, module: str, *arguments: str, scratch: str = "") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            env={**os.environ, "HEADWATER_SCRATCH": scratch},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(end, process)
        return process

    def workers(self) -> list[str]:
        return list(self.client.scheduler_info(n_workers=-1)["workers"])

    def who(self) -> list[dict[str, Any]]:
        async def ask() -> list[dict[str, Any]]:
            workers = (await self.client.scheduler.identity(n_workers=-1))["workers"]
            answers = (self.client.rpc(address).headwater_info() for address in workers)
            found = await asyncio.gather(*answers, return_exceptions=True)
            return [info for info in found if isinstance(info, dict)]  # others are dying

        return self.client.sync(ask)

    def events(self, topic: str) -> list[dict[str, Any]]:
        return [message for _, message in self.client.get_events(topic)]


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(stack, tmp_path)


def publish(scratch: Path, run: str, partitions: Sequence[int]) -> dict[str, bytes]:
    """Publish small blocks; returns the files' contents by path."""
    store, schema = NodeStore(scratch), pa.schema([("n", pa.int64())])
    store.open_run(run)
    for partition in partitions:
        with store.create_block(run, 0, partition, 0) as file:
            writer = BlockWriter(file, schema, 1)
            writer.write(0, pa.table({"n": range(100 * partition + 1)}, schema))
            label = BlockLabel(run, 0, f"key-{run}", partition, 0, "f1", seconds=1.0)
            writer.close(encode(label, *writer.finish_segments()))
            file.publish()
    return contents(scratch, run)


def contents(scratch: Path, run: str) -> dict[str, bytes]:
    store = NodeStore(scratch)
    return {block.path: store.resolve(block.path).read_bytes() for block in store.blocks(run)}


def test_a_worker_that_is_told_to_leave_finishes_what_it_runs_and_hands_over(place: Place, tmp_path: Path):
    leaving = place.host("a", "--name=a")
    place.client.wait_for_workers(1, timeout=60)
    address = place.workers()[0]
    for name in ("b", "c"):
        place.host(name)
    place.client.wait_for_workers(3, timeout=60)
    published = publish(tmp_path / "a", "r1", range(6)) | publish(tmp_path / "a", "r2", [9])
    os.mkfifo(tmp_path / "go on")
    (tmp_path / "seen").mkdir()

    def run(folder: Path, number: int) -> int:
        (folder / "seen" / str(number)).touch()
        (folder / "go on").read_bytes()
        return number

    running = place.client.submit(run, tmp_path, 7, workers=["a"])
    eventually((tmp_path / "seen" / "7").exists)

    leaving.terminate()
    draining = {"kind": "draining", "worker": address}
    eventually(lambda: draining in place.events(WORKERS_TOPIC))
    assert leaving.poll() is None
    with open(tmp_path / "go on", "wb"):
        pass
    assert running.result(timeout=60) == 7
    assert leaving.wait(timeout=60) == 0
    assert place.events(WORKERS_TOPIC) == [draining, {"kind": "left", "worker": address}]
    assert address not in place.workers()

    there = {name: contents(tmp_path / name, "r1") | contents(tmp_path / name, "r2") for name in ("b", "c")}
    assert there["b"] | there["c"] == published
    assert not there["b"].keys() & there["c"].keys()
    assert there["b"]
    assert there["c"]
    nodes = {read_identity(tmp_path / name): name for name in "abc"}
    told = [(event["run"], event) for event in place.events(RUNS_TOPIC)]
    for run, event in told:
        assert (event["kind"], nodes[event["source"]]) == ("blocks moved", "a")
        for stage, partition, attempt in event["parts"]:
            path = f"runs/{run}/blocks/s{stage}-p{partition}-a{attempt}.arrow"
            assert path in there[nodes[event["target"]]]
    assert sum(len(event["parts"]) for _, event in told) == len(published)


def test_of_workers_that_leave_together_exactly_the_last_hands_over(place: Place, tmp_path: Path):
    supervisor = place.host("a", "--workers=2")
    place.host("b")
    place.client.wait_for_workers(3, timeout=60)
    published = publish(tmp_path / "a", "r1", range(3))
    node = read_identity(tmp_path / "a")
    for (
        info
    ) in place.who():  # as systemd does: all processes of the unit at once, and the supervisor passes it on
        if info["node"] == node:
            os.kill(info["pid"], signal.SIGTERM)
    supervisor.terminate()
    assert supervisor.wait(timeout=60) == 0
    assert contents(tmp_path / "b", "r1") == published
    (event,) = place.events(RUNS_TOPIC)
    assert sorted(map(tuple, event["parts"])) == [(0, p, 0) for p in range(3)]
    kinds = [event["kind"] for event in place.events(WORKERS_TOPIC)]
    assert sorted(kinds) == ["draining", "draining", "left", "left"]


def test_blocks_stay_while_another_worker_of_the_node_lives(place: Place, tmp_path: Path):
    leaving = place.host("a")
    place.host("a")
    place.host("b")
    place.client.wait_for_workers(3, timeout=60)
    publish(tmp_path / "a", "r1", range(3))
    leaving.terminate()
    assert leaving.wait(timeout=60) == 0
    assert contents(tmp_path / "b", "r1") == {}
    assert place.events(RUNS_TOPIC) == []


@pytest.mark.parametrize("kind", ["host", "plain", "nanny"])
def test_a_worker_that_dask_retires_hands_over(place: Place, tmp_path: Path, kind: str):
    from headwater.runtime.workers.worker_plugin import HeadwaterWorkerPlugin

    start = {"host": place.host, "plain": place.plain_worker, "nanny": place.plain_worker}[kind]
    retired = start("a", *(["--no-nanny"] if kind == "plain" else []))
    place.client.wait_for_workers(1, timeout=60)
    address = place.workers()[0]
    place.host("b")
    place.client.wait_for_workers(2, timeout=60)
    place.client.register_plugin(HeadwaterWorkerPlugin())
    published = publish(tmp_path / "a", "r1", range(3))
    place.client.retire_workers([address])
    assert retired.wait(timeout=60) == 0
    assert contents(tmp_path / "b", "r1") == published
    assert place.events(WORKERS_TOPIC) == [
        {"kind": "draining", "worker": address},
        {"kind": "left", "worker": address},
    ]


def test_a_second_signal_leaves_at_once(place: Place, tmp_path: Path):
    host = place.host("a")
    place.client.wait_for_workers(1, timeout=60)
    os.mkfifo(tmp_path / "never")

    def run(folder: Path) -> None:
        (folder / "seen").touch()
        (folder / "never").read_bytes()

    future = place.client.submit(run, tmp_path, retries=0)
    eventually((tmp_path / "seen").exists)
    host.terminate()
    eventually(lambda: place.events(WORKERS_TOPIC))
    host.send_signal(signal.SIGINT)
    assert host.wait(timeout=60) == 128 + signal.SIGINT
    future.release()


def test_a_task_that_takes_too_long_is_given_up(place: Place, tmp_path: Path):
    host = place.host("a", "--drain-timeout=0.2")
    place.client.wait_for_workers(1, timeout=60)
    os.mkfifo(tmp_path / "never")

    def run(folder: Path) -> None:
        (folder / "seen").touch()
        (folder / "never").read_bytes()

    future = place.client.submit(run, tmp_path)
    eventually((tmp_path / "seen").exists)
    host.terminate()
    assert host.wait(timeout=60) == 0
    assert place.events(WORKERS_TOPIC)[-1]["kind"] == "left"
    future.release()


def test_no_scheduler_within_the_grace(tmp_path: Path):
    with socket.socket() as silent:  # bound, so nobody else's; not listening, so refused
        silent.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-P", "-m", "headwater.cli", "worker", address, "--grace=0.1"]
        done = subprocess.run([*command, f"--scratch={tmp_path}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == NO_SCHEDULER
    assert f"No scheduler at {address} for 0.1 seconds" in done.stderr


def test_a_supervisor_replaces_what_dies_and_takes_along_what_lives(place: Place, tmp_path: Path):
    supervisor = place.host("a", "--workers=2", "--name=w")
    place.client.wait_for_workers(2, timeout=60)
    before = {info["pid"] for info in place.who()}
    assert len({info["node"] for info in place.who()}) == 1
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    after = eventually(lambda: (now := {i["pid"] for i in place.who()} - {killed}) and len(now) == 2 and now)
    assert len(after & before) == 1
    processes = [psutil.Process(pid) for pid in after]
    helpers = [child for process in processes for child in process.children(recursive=True)]
    supervisor.kill()
    _, alive = psutil.wait_procs([*processes, *helpers], timeout=60)
    assert not list(filter(runs, alive))
    eventually(lambda: not place.workers())


def test_a_process_that_keeps_dying_is_given_up():
    lines: list[str] = []
    command = [sys.executable, "-S", "-c", "raise SystemExit(7)"]
    assert supervise([command], pauses=(0.0, 0.0), tell=lines.append) == 1
    assert [line.rpartition("; ")[2] for line in lines] == [
        "another one takes its place.",
        "another one takes its place.",
        "it is given up after 3 deaths.",
    ]


def test_a_process_that_left_is_not_started_again(tmp_path: Path):
    script = f"open({str(tmp_path / 'starts')!r}, 'a').write('.')"
    assert supervise([[sys.executable, "-S", "-c", script]] * 3) == 0
    assert (tmp_path / "starts").read_text() == "..."


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["10.0.0.1:8786"], "Did you mean 'tcp://10.0.0.1:8786'"),
        (["tcp://10.0.0.1:8786", "--quota=lots"], "--quota 'lots': write bytes, or a size as '100 GB'"),
        (["tcp://10.0.0.1:8786", "--memory-limit=3"], "at least 32 MiB"),
    ],
)
def test_wrong_options(options: list[str], text: str, capsys):
    assert execute(["worker", *options]) == USAGE
    assert text in capsys.readouterr().err


def test_kept_blocks_are_handed_over_with_their_pins_and_runs(place: Place, tmp_path: Path):
    leaving = place.host("a")
    place.client.wait_for_workers(1, timeout=60)
    address = place.workers()[0]
    place.host("b")
    place.client.wait_for_workers(2, timeout=60)
    store, me = NodeStore(tmp_path / "a"), this_process()
    kept = Kept(store)
    kept.keep(list(publish(tmp_path / "a", "r1", [0, 1])), pinned=True, owner=me)  # by two names
    kept.keep(list(publish(tmp_path / "a", "r2", [0])))
    store.remove_run("r2")  # outlives its run
    kept.keep(list(publish(tmp_path / "a", "r3", [5])))
    store.remove_run("r3")
    store.open_run("r4", me)
    kept.use("r4", ["key-r3"], me)
    groups = collect(store)
    assert [[parcel.path for parcel in group] for group in groups] == [
        ["runs/r1/blocks/s0-p0-a0.arrow", "runs/r1/blocks/s0-p1-a0.arrow"],
        ["kept/key-r3/p5.arrow"],
        ["kept/key-r2/p0.arrow"],
    ]

    leaving.terminate()
    assert leaving.wait(timeout=60) == 0
    there = NodeStore(tmp_path / "b")
    summary = {entry.key: (entry.partitions, entry.pinned, entry.in_use) for entry in Kept(there).summary()}
    assert summary == {
        "key-r1": (2, True, False),
        "key-r2": (1, False, False),
        "key-r3": (1, False, True),
    }
    assert there.resolve("kept/key-r1/p1.arrow").samefile(there.resolve("runs/r1/blocks/s0-p1-a0.arrow"))
    assert (there.root / "runs/r4/owner.json").read_text() == (store.root / "runs/r4/owner.json").read_text()
    told = [event for event in place.events(WORKERS_TOPIC) if event["kind"] == "kept moved"]
    source, target = store.node, there.node
    assert [(event["source"], event["target"], list(event["paths"])) for event in told] == [
        (source, target, ["kept/key-r3/p5.arrow"]),
        (source, target, ["kept/key-r2/p0.arrow"]),
    ]
    assert place.events(WORKERS_TOPIC)[-1] == {"kind": "left", "worker": address}


def parcels(*sizes: int) -> list[Parcel]:
    return [Parcel(f"b{number:03}", size) for number, size in enumerate(sizes)]


def test_shares_are_even_and_fit():
    all_of_them = parcels(*(10 + number % 7 for number in range(100)))
    shares, rest = share_out(all_of_them, {"small": 100, "large": 10_000, "other": 10_000})
    sizes = {node: sum(parcel.bytes for parcel in share) for node, share in shares.items()}
    assert rest == []
    assert sorted(p.path for share in shares.values() for p in share) == [p.path for p in all_of_them]
    assert sizes["small"] <= 100
    assert abs(sizes["large"] - sizes["other"]) <= 16
    again = share_out(reversed(all_of_them), {"other": 10_000, "large": 10_000, "small": 100})
    assert again == (shares, rest)


def test_what_fits_nowhere_is_told():
    large, small = parcels(50, 5)
    assert share_out([large, small], {"n": 20}) == ({"n": [small]}, [large])
    assert share_out([small], {}) == ({}, [small])


def test_batches_are_bounded_and_of_one_run():
    some = [Parcel(f"{run}-{number}", 100 << 20, run) for number in range(5) for run in ("r1", "r2")]
    cut = list(batches(some))
    assert [len(batch) for batch in cut] == [2, 2, 1] * 2
    assert all(len({parcel.run for parcel in batch}) == 1 for batch in cut)
    assert sorted(p.path for batch in cut for p in batch) == sorted(p.path for p in some)
    (huge,) = batches([Parcel("b", 1 << 40)])
    assert len(huge) == 1
    assert [len(batch) for batch in batches(parcels(*[1] * 130))] == [64, 64, 2]
