"""Worker processes of three nodes: one dies, or stops, in the middle of serving; the task that reads goes on."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
from distributed import Client, Future, LocalCluster

from headwater.ops.kernel import Broadcast, Context, Kernel, Stream
from headwater.planner.plan import BlockLeaf, BroadcastLeaf, Operator, Step
from headwater.runtime.nodes.blocks import BlockWriter
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import Block, PartitionInput, Segment, StageProgram, Task, TaskResult
from headwater.runtime.workers.fetch import FetchOptions
from headwater.runtime.workers.relocation import pack_segments
from headwater.runtime.workers.worker_plugin import HeadwaterWorkerPlugin, execute, pack_program

pytestmark = [pytest.mark.cluster, pytest.mark.fault]

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SCHEMA = pa.schema([("x", pa.int64())])
#: rows of a block; at 8 bytes it takes several messages
ROWS = 400_000
MESSAGE_BYTES = 1 << 20


def rows(partition: int) -> pa.Table:
    return pa.table({"x": np.arange(partition * ROWS, (partition + 1) * ROWS)}, SCHEMA)


def put(store: NodeStore, partition: int, attempt: int = 0, before: int = 0) -> Segment:
    """Publish a block and give the segment with a partition's rows; ``before`` rows of another one lie before."""
    store.open_run("r1")
    with store.create_block("r1", 0, partition, attempt) as file:
        writer = BlockWriter(file, SCHEMA, 2)
        writer.write(0, pa.table({"x": np.arange(before)}, SCHEMA))
        writer.write(1, rows(partition))
        offsets, counts = writer.close()
        size = file.publish()
    return Block(0, partition, attempt, store.node, file.path, offsets, counts, size, "").segment(1)


def note_what_is_served(log: str, most: int | None, dask_worker: Any = None) -> None:
    """Make a worker write down the ranges it serves, and, after so many messages, never answer again."""
    import asyncio

    serve, messages = dask_worker.handlers["headwater_fetch"], []

    async def noted(ranges: Any, check: Any = ()) -> Any:
        messages.append(ranges)
        if most is not None and len(messages) > most:
            Path(f"{log}.stuck").touch()
            await asyncio.Event().wait()
        reply = await serve(ranges, check)
        with open(log, "a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in ranges)
        return reply

    dask_worker.handlers["headwater_fetch"] = noted


@dataclass
class Node:
    """A worker process and its scratch folder."""

    store: NodeStore
    process: subprocess.Popen
    address: str
    log: Path

    def served(self) -> list[Any]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]


class Place:
    """Nodes a, b and c, with a worker of one thread each, and what a driver would do."""

    def __init__(self, client: Client, nodes: dict[str, Node]):
        self.client, self.nodes = client, nodes
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        client.subscribe_topic("headwater-runs", lambda event: self.heard.put(event[1]))

    def addresses(self, *names: str) -> dict[str, tuple[str, ...]]:
        return {self.nodes[name].store.node: (self.nodes[name].address,) for name in names}

    def note(self, name: str, most: int | None = None) -> None:
        node = self.nodes[name]
        self.client.run(note_what_is_served, str(node.log), most, workers=[node.address])

    def submit(self, task: Task, operator: Operator, stage: int = 1) -> Future:
        program = pack_program(StageProgram("r1", stage, "key", "read", operator, SCHEMA))
        return self.client.submit(execute, task, program, workers=[self.nodes["a"].address], pure=False)

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        async def call() -> dict[str, Any]:
            rpc = self.client.rpc(self.nodes["a"].address)
            return await getattr(rpc, f"headwater_{operation}")(**arguments)

        return self.client.sync(call)

    def relocate(self, task: Task, moved: dict[Segment, Segment]) -> None:
        answer = {"segments": pack_segments(moved), "nodes": self.addresses("a", "c")}
        assert self.call("relocate", run="r1", name=task.name, **answer)["known"]

    def read(self, result: TaskResult) -> pa.Table:
        store, tables = self.nodes["a"].store, []
        for part in result.partitions:
            assert part.block is not None
            with pa.ipc.open_file(store.resolve(part.block.path)) as reader:
                tables.append(reader.read_all())
        return pa.concat_tables(tables)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with (
        LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        processes = {name: _start(cluster.scheduler_address, tmp_path / name) for name in "abc"}
        try:
            client.wait_for_workers(3, timeout=120)
            client.register_plugin(HeadwaterWorkerPlugin(options=FetchOptions(message_bytes=MESSAGE_BYTES)))
            found = client.run(lambda dask_worker: (os.getpid(), str(dask_worker.headwater.store.root)))
            nodes = {}
            for address, (_, root) in found.items():
                name = Path(root).parent.name
                log = tmp_path / f"served-{name}"
                nodes[name] = Node(NodeStore(root), processes[name], address, log)
            yield Place(client, nodes)
        finally:
            for process in processes.values():
                process.kill()
                process.wait()


def _start(scheduler: str, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-nanny", "--no-dashboard"]
    return subprocess.Popen(
        [*command, "--nthreads", "1", "--host", "127.0.0.1", "--local-directory", str(folder / "dask")],
        env={**os.environ, "HEADWATER_SCRATCH": str(folder / "scratch")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def reducer(segments: Sequence[Segment], nodes: dict[str, tuple[str, ...]], id: int = 0, **more: Any) -> Task:
    given = tuple(PartitionInput(i, {0: (segment,)}) for i, segment in enumerate(segments))
    return Task("r1", 1, id, 0, given, nodes=nodes, **more)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def half_served(place: Place) -> tuple[list[Segment], Task, Future]:
    """A task on node a that has read its own block and part of node b's; node b is stuck in its third message."""
    blocks = [put(place.nodes[name].store, i) for i, name in enumerate("abcbc")]
    place.note("b", most=2)
    place.note("c")
    task = reducer(blocks, place.addresses("a", "b", "c"))
    future = place.submit(task, BlockLeaf(0, 0, SCHEMA))
    until(Path(f"{place.nodes['b'].log}.stuck").exists)
    return blocks, task, future


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_task_goes_on_when_a_node_dies_that_it_reads_from(
    place: Place, half_served: tuple[list[Segment], Task, Future], how: str
) -> None:
    blocks, task, future = half_served
    node = place.nodes["b"]
    if how == "killed":
        node.process.kill()
    else:
        node.process.send_signal(signal.SIGSTOP)
        place.call("dead", nodes=place.addresses("b"))
    message = place.heard.get(timeout=60)
    assert message["kind"] == "inputs lost"
    assert message["worker"] == place.nodes["a"].address
    assert (message["stage"], message["id"], message["attempt"]) == (1, 0, 0)
    assert [tuple(block) for block in message["lost"]] == [(0, 1, 0), (0, 3, 0)]

    # the worker has one thread: what the task waits for can run only if it gave its slot back
    made = {}
    for lost, store in ((blocks[1], "a"), (blocks[3], "c")):
        source = put(place.nodes[store].store, lost.partition, attempt=7, before=1234)
        made[lost] = source
        again = Task("r1", 2, 10 + lost.partition, 0, (PartitionInput(0, {0: (source,)}),))
        again = Task(**{**again.__dict__, "nodes": place.addresses("a", "c")})
        assert place.submit(again, BlockLeaf(0, 0, SCHEMA), 2).result(timeout=60).metrics.rows_out == ROWS
    assert not future.done()
    assert 0 < place.call("progress", run="r1")["done"][task.name] < 0.5
    place.relocate(task, made)

    result = future.result(timeout=60)
    assert place.read(result).equals(pa.concat_tables([rows(i) for i in range(5)]))
    served = Counter(map(tuple, place.nodes["c"].served()))
    of_the_task = {path for path, _, _ in served if path != made[blocks[3]].path}
    assert of_the_task == {blocks[2].path, blocks[4].path}
    assert all(served[entry] == 1 for entry in served if entry[0] in of_the_task)
    assert result.metrics.remote_bytes == sum(s.length for s in (blocks[2], made[blocks[3]], blocks[4]))


@dataclass(frozen=True)
class Times(Kernel):
    """Multiplies by the number of rows of the broadcast input."""

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        stream, whole = inputs
        count = whole.once("count", lambda: whole.table().num_rows)
        for table in stream:
            yield pa.table({"x": table["x"].to_numpy() * count}, SCHEMA)


def test_tasks_that_wait_for_one_broadcast_leave_the_worker_free(place: Place) -> None:
    main, small = put(place.nodes["a"].store, 0), put(place.nodes["b"].store, 1)
    tasks = [reducer([main], place.addresses("a", "b"), id, broadcast={1: (small,)}) for id in range(3)]
    place.nodes["b"].process.kill()
    operator = Step(Times(), (BlockLeaf(0, 0, SCHEMA), BroadcastLeaf(1, 0, SCHEMA)), SCHEMA)
    futures = [place.submit(task, operator) for task in tasks]
    heard = {place.heard.get(timeout=60)["id"] for _ in tasks}
    assert heard == {0, 1, 2}
    again = put(place.nodes["c"].store, 1, attempt=1)
    copy = reducer([again], place.addresses("c"), 9)
    assert place.submit(copy, BlockLeaf(0, 0, SCHEMA)).result(timeout=60)
    for task in tasks:
        place.relocate(task, {small: again})
    for future in futures:
        table = place.read(future.result(timeout=60))
        np.testing.assert_array_equal(table["x"], np.arange(ROWS) * ROWS)


def test_a_waiting_task_can_be_cancelled(
    place: Place, half_served: tuple[list[Segment], Task, Future]
) -> None:
    from headwater.runtime.task import CancelledTask

    _, task, future = half_served
    place.nodes["b"].process.kill()
    place.heard.get(timeout=60)
    place.call("cancel", run="r1", names=[task.name])
    with pytest.raises(CancelledTask):
        future.result(timeout=60)
    left = [block for block in place.nodes["a"].store.blocks("r1") if block.stage == 1]
    assert len(left) < len(task.partitions)  # what it had finished may stay, what it waited for isn't there
