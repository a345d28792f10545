"""Segments cross between nodes: two scratch folders in one process stand for two machines."""

import asyncio
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
from distributed import Client, LocalCluster, wait

from headwater.errors import ClusterError, SerializationError
from headwater.planner.plan import BlockLeaf
from headwater.runtime import collect
from headwater.runtime.collect import fetch_segments
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import (
    Block,
    CancelledTask,
    FetchFailedError,
    PartitionInput,
    Segment,
    StageProgram,
    Task,
)
from headwater.runtime.workers.exchange import write_block
from headwater.runtime.workers.fetch import Fetcher, FetchOptions, Relocate
from headwater.runtime.workers.relocation import pack_segments
from headwater.runtime.workers.worker_plugin import (
    HeadwaterWorkerPlugin,
    execute,
    pack_program,
    runtime_of,
)
from headwater.runtime.workers.worker_runtime import WorkerRuntime

pytestmark = pytest.mark.cluster

SCHEMA = pa.schema([("x", pa.int64()), ("s", pa.string())])
DEAD = "tcp://127.0.0.1:1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=3, threads_per_worker=2, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


class Nodes:
    """Three workers: the first on node a, the other two on node b."""

    def __init__(self, cluster: LocalCluster, root: Path):
        self.a, self.b = NodeStore(root / "a"), NodeStore(root / "b")
        self.workers = list(cluster.workers.values())
        self.runtimes = [
            WorkerRuntime(worker, store) for worker, store in zip(self.workers, (self.a, self.b, self.b))
        ]
        for runtime in self.runtimes:
            runtime.install()
        for store in (self.a, self.b):
            store.open_run("r1")
        first, *rest = (worker.address for worker in self.workers)
        self.addresses = {self.a.node: (first,), self.b.node: tuple(rest)}

    def fetcher(self, **options: Any) -> Fetcher:
        """A fetcher of the worker on node a."""
        worker, patience = self.workers[0], {"reply_seconds": 10.0, "connect_seconds": 1.0, **options}
        roots = {self.a.node: self.a.root}
        return Fetcher(roots, worker.rpc, worker.loop.asyncio_loop, self.a.space, FetchOptions(**patience))

    def read(self, segments: list[Segment], memory: int = 64 << 20, **options: Any) -> pa.Table:
        with self.fetcher(**options).open(segments, self.addresses, memory) as inputs:
            return pa.concat_tables([SCHEMA.empty_table(), *inputs.tables(segments, SCHEMA)])


@pytest.fixture
def nodes(cluster: LocalCluster, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(cluster, tmp_path)
    yield made
    for worker in made.workers:
        del worker.headwater


def rows(partition: int, count: int = 100) -> pa.Table:
    start = partition * 1000
    return pa.table({"x": range(start, start + count), "s": [f"row {i}" for i in range(count)]}, SCHEMA)


def put(store: NodeStore, partition: int, table: pa.Table | None = None, attempt: int = 0) -> Block:
    table = rows(partition) if table is None else table
    with store.create_block("r1", 0, partition, attempt) as file:
        index = write_block(file, iter([table]), table.schema)
        size = file.publish()
    return Block(0, partition, attempt, store.node, file.path, index.offsets, index.rows, size, "")


def mixed(nodes: Nodes, count: int = 6) -> list[Segment]:
    """Segments that lie on both nodes, in turns."""
    return [put(nodes.b if i % 2 else nodes.a, i).whole() for i in range(count)]


def calls_to(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the number of ranges in each message that the workers of node b are asked for."""
    seen: list[int] = []
    for worker in nodes.workers[1:]:
        serve = worker.handlers["headwater_fetch"]

        async def noted(ranges: Any, check: Any = (), serve: Any = serve) -> Any:
            seen.append(len(ranges))
            return await serve(ranges, check)

        monkeypatch.setitem(worker.handlers, "headwater_fetch", noted)
    return seen


async def never(ranges: Any, check: Any = ()) -> None:
    await asyncio.Event().wait()


def test_streams_come_in_map_order_from_both_nodes(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_to(nodes, monkeypatch)
    segments = mixed(nodes)
    with nodes.fetcher().open(segments, nodes.addresses) as inputs:
        backwards = pa.concat_tables(inputs.tables(segments[::-1], SCHEMA))
        forwards = pa.concat_tables(inputs.tables(segments, SCHEMA))
    assert forwards.equals(pa.concat_tables([rows(i) for i in range(6)]))
    assert backwards.equals(pa.concat_tables([rows(i) for i in range(5, -1, -1)]))
    assert inputs.local_bytes == inputs.remote_bytes == 3 * segments[0].length
    assert calls == [3]


@pytest.mark.parametrize("message_bytes", [64, 1000, 10_000])
def test_segments_are_cut_into_messages_of_bounded_size(nodes: Nodes, message_bytes: int) -> None:
    assert nodes.read(mixed(nodes), message_bytes=message_bytes).equals(
        pa.concat_tables([rows(i) for i in range(6)])
    )


def test_a_segment_larger_than_a_message(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_to(nodes, monkeypatch)
    big = pa.table({"x": np.arange(9_000_000)})
    segment = put(nodes.b, 0, big).whole()
    assert segment.length > 64 << 20
    with nodes.fetcher().open([segment], nodes.addresses, memory_bytes=1 << 30) as inputs:
        tables = list(inputs.tables([segment], big.schema))
    assert pa.concat_tables(tables).equals(big)
    assert len(calls) == 5
    values = tables[0]["x"].chunk(0).to_numpy(zero_copy_only=True)
    assert values.flags.aligned


def test_more_than_memory_goes_to_a_file_that_is_counted(nodes: Nodes) -> None:
    segments = mixed(nodes)
    with nodes.fetcher().open(segments, nodes.addresses, memory_bytes=1000) as inputs:
        assert inputs.spilled_bytes >= inputs.remote_bytes > 1000
        used = nodes.a.space.used_bytes()
        table = pa.concat_tables(inputs.tables(segments, SCHEMA))
    assert used - nodes.a.space.used_bytes() == inputs.spilled_bytes
    assert table.equals(pa.concat_tables([rows(i) for i in range(6)]))


def test_missing_blocks_are_named_all_of_them(nodes: Nodes) -> None:
    segments = mixed(nodes, 10)
    gone = [segments[3], segments[7]]
    nodes.b.delete_blocks(segment.path for segment in gone)
    with pytest.raises(FetchFailedError) as caught:
        nodes.read(segments, message_bytes=64)
    assert caught.value.lost == ((0, 3, 0), (0, 7, 0))
    assert caught.value.nodes == ()


def test_a_file_cut_short_is_missing(nodes: Nodes) -> None:
    segments = mixed(nodes, 4)
    for segment, store in ((segments[2], nodes.a), (segments[3], nodes.b)):
        with open(store.resolve(segment.path), "r+b") as file:
            file.truncate(segment.offset + segment.length // 2)
        with pytest.raises(FetchFailedError) as caught:
            nodes.read([segment])
        assert caught.value.lost == ((0, segment.partition, 0),)


@pytest.mark.parametrize("partition", [2, 3], ids=["local", "remote"])
def test_a_file_of_garbage_is_as_good_as_gone(nodes: Nodes, partition: int) -> None:
    segment = mixed(nodes, 4)[partition]
    store = nodes.b if partition % 2 else nodes.a
    with open(store.resolve(segment.path), "r+b") as file:
        file.write(bytes(segment.offset + segment.length))
    with pytest.raises(FetchFailedError) as caught:
        nodes.read([segment])
    assert caught.value.lost == ((0, partition, 0),)


def test_a_connection_that_died_is_made_again(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    serve, left = nodes.workers[1].handlers["headwater_fetch"], [1]

    async def drops(comm: Any, ranges: Any, check: Any = ()) -> Any:
        if left:
            left.pop()
            comm.abort()
        return await serve(ranges, check)

    nodes.addresses[nodes.b.node] = nodes.addresses[nodes.b.node][:1]
    monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", drops)
    assert nodes.read(mixed(nodes)).num_rows == 600
    assert not left


def test_a_sibling_serves_for_a_dead_worker(nodes: Nodes) -> None:
    nodes.addresses[nodes.b.node] = (DEAD, *nodes.addresses[nodes.b.node])
    assert nodes.read(mixed(nodes)).num_rows == 600


@pytest.mark.parametrize("addresses", [(DEAD,), ()])
def test_a_node_that_no_one_answers_for_is_named(nodes: Nodes, addresses: tuple[str, ...]) -> None:
    nodes.addresses[nodes.b.node] = addresses
    with pytest.raises(FetchFailedError) as caught:
        nodes.read(mixed(nodes))
    assert caught.value.nodes == (nodes.b.node,)
    assert caught.value.lost == ((0, 1, 0), (0, 3, 0), (0, 5, 0))


def test_a_hung_worker_counts_as_gone(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", never)
    assert nodes.read(mixed(nodes), reply_seconds=0.2).num_rows == 600
    monkeypatch.setitem(nodes.workers[2].handlers, "headwater_fetch", never)
    with pytest.raises(FetchFailedError) as caught:
        nodes.read(mixed(nodes), reply_seconds=0.2)
    assert caught.value.nodes == (nodes.b.node,)


def test_waiting_ends_when_the_task_is_cancelled(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = threading.Event()

    async def cancels(ranges: Any, check: Any = ()) -> None:
        cancelled.set()
        await never(ranges)

    monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", cancels)
    segments = mixed(nodes)
    with (
        nodes.fetcher().open(segments, nodes.addresses, cancelled=cancelled) as inputs,
        pytest.raises(CancelledTask),
    ):
        list(inputs.tables(segments, SCHEMA))


def test_many_tasks_fetch_at_once(nodes: Nodes) -> None:
    segments = mixed(nodes, 24)
    expected = pa.concat_tables([rows(i) for i in range(24)])
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(lambda _: nodes.read(segments, message_bytes=3000), range(24)))
    assert all(table.equals(expected) for table in tables)


def test_only_blocks_are_served(nodes: Nodes) -> None:
    (nodes.b.root / "secret").write_bytes(bytes(100))
    block = put(nodes.b, 1)
    for path in ("secret", "../b/secret", str(nodes.b.root / "secret")):
        with pytest.raises(FetchFailedError):
            nodes.read([block.whole()._replace(path=path, offset=0, length=10)])


class TestRelocation:
    """What is lost on the way is fetched from where it is then; what has arrived stays."""

    def read(
        self,
        nodes: Nodes,
        segments: list[Segment],
        relocate: Relocate,
        memory: int = 64 << 20,
        **options: Any,
    ) -> pa.Table:
        fetcher = nodes.fetcher(**options)
        with fetcher.open(segments, nodes.addresses, memory, relocate=relocate) as inputs:
            table = pa.concat_tables(inputs.tables(segments, SCHEMA))
            assert table.equals(pa.concat_tables(inputs.tables(segments, SCHEMA)))
            assert inputs.local_bytes + inputs.remote_bytes == sum(s.length for s in segments)
        return table

    def test_missing_blocks_come_from_new_places(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        calls, segments, asked = calls_to(nodes, monkeypatch), mixed(nodes, 10), []
        gone = [segments[i] for i in (2, 3, 7)]
        for segment in gone:
            (nodes.b if segment.partition % 2 else nodes.a).delete_blocks([segment.path])

        def relocate(lost: Sequence[Segment]) -> Any:
            asked.append(set(lost))
            new = {segment: put(nodes.b, segment.partition, attempt=1).whole() for segment in lost}
            return new, nodes.addresses

        assert self.read(nodes, segments, relocate).equals(pa.concat_tables([rows(i) for i in range(10)]))
        assert set().union(*asked) == set(gone)
        assert sum(map(len, asked)) == 3
        # 5 ranges in vain, 3 that are there, and those that were lost
        assert calls == [5, 3, 3]

    @pytest.mark.parametrize("memory", [64 << 20, 1000])
    def test_several_losses_one_after_the_other(self, nodes: Nodes, memory: int) -> None:
        segments, living = mixed(nodes, 6), nodes.addresses
        nodes.addresses = {**living, nodes.b.node: (DEAD,)}
        asked: list[list[int]] = []

        def relocate(lost: Sequence[Segment]) -> Any:
            asked.append(sorted(segment.attempt for segment in lost))
            if len(asked) == 1:  # a node that no one answers for, either
                return {s: s._replace(attempt=1, node="elsewhere") for s in lost}, {"elsewhere": (DEAD,)}
            if len(asked) == 2:  # not all of it yet
                lost = lost[:2]
            return {s: put(nodes.b, s.partition, attempt=2).whole() for s in lost}, living

        table = self.read(nodes, segments, relocate, memory)
        assert table.equals(pa.concat_tables([rows(i) for i in range(6)]))
        assert asked == [[0, 0, 0], [1, 1, 1], [1]]

    def test_other_nodes_go_on_meanwhile(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        """The node that answers is asked for all its messages while the reader waits for the other's blocks."""
        calls, segments = calls_to(nodes, monkeypatch), mixed(nodes, 8)
        lost = [segment._replace(node="elsewhere") for segment in segments[::2]]
        wanted = [lost[0], *segments[1::2], *lost[1:]]
        nodes.addresses["elsewhere"] = (DEAD,)
        served = threading.Event()
        serve = nodes.workers[1].handlers["headwater_fetch"]

        async def counted(ranges: Any, check: Any = ()) -> Any:
            reply = await serve(ranges, check)
            if len(calls) == 4:
                served.set()
            return reply

        monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", counted)

        def relocate(lost: Sequence[Segment]) -> Any:
            assert served.wait(30)
            return {s: s._replace(node=nodes.a.node) for s in lost}, {}

        table = self.read(nodes, wanted, relocate, message_bytes=segments[1].length)
        assert table.equals(pa.concat_tables([rows(segment.partition) for segment in wanted]))
        assert len(calls) == 4

    def test_a_node_declared_dead_is_waited_for_no_longer(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetcher, segments = nodes.fetcher(reply_seconds=200.0), mixed(nodes, 4)
        loop = nodes.workers[0].loop.asyncio_loop

        async def hangs(ranges: Any, check: Any = ()) -> None:
            loop.call_soon(fetcher.abandon, {nodes.b.node: nodes.addresses[nodes.b.node]})
            await never(ranges)

        serve = nodes.workers[1].handlers["headwater_fetch"]
        monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", hangs)

        def relocate(lost: Sequence[Segment]) -> Any:
            assert list(lost) == segments[1::2]
            nodes.workers[1].handlers["headwater_fetch"] = serve
            return {segment: segment for segment in lost}, nodes.addresses  # the driver says that it is back

        with fetcher.open(segments, nodes.addresses, relocate=relocate) as inputs:
            table = pa.concat_tables(inputs.tables(segments, SCHEMA))
        assert table.equals(pa.concat_tables([rows(i) for i in range(4)]))

    def test_newer_workers_of_a_node_are_not_given_up_with_older_ones(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetcher, segments = nodes.fetcher(), mixed(nodes, 4)
        serve = nodes.workers[1].handlers["headwater_fetch"]

        async def told(ranges: Any, check: Any = ()) -> Any:
            fetcher.abandon({nodes.b.node: [DEAD]})
            return await serve(ranges, check)

        monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", told)
        with fetcher.open(segments, nodes.addresses) as inputs:
            assert pa.concat_tables(inputs.tables(segments, SCHEMA)).num_rows == 400

    def test_without_relocation_a_dead_node_is_an_error(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetcher, segments = nodes.fetcher(reply_seconds=200.0), mixed(nodes, 4)
        loop = nodes.workers[0].loop.asyncio_loop

        async def hangs(ranges: Any, check: Any = ()) -> None:
            loop.call_soon(fetcher.abandon, [nodes.b.node])
            await never(ranges)

        monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", hangs)
        with (
            fetcher.open(segments, nodes.addresses) as inputs,
            pytest.raises(FetchFailedError) as caught,
        ):
            list(inputs.tables(segments, SCHEMA))
        assert caught.value.nodes == (nodes.b.node,)


class TestFromTheDriver:
    """`fetch_segments`, by each of its ways."""

    def read(self, client: Client, nodes: Nodes, segments: list[Segment], window: int = 64 << 20) -> pa.Table:
        found = fetch_segments(client, segments, nodes.addresses, SCHEMA, window)
        return pa.concat_tables([SCHEMA.empty_table(), *found])

    @pytest.mark.parametrize("window", [1, 5000, 64 << 20])
    def test_files_of_this_machine_are_mapped(
        self, client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, window: int
    ) -> None:
        calls = calls_to(nodes, monkeypatch)
        assert self.read(client, nodes, mixed(nodes), window).equals(
            pa.concat_tables([rows(i) for i in range(6)])
        )
        assert calls == []

    @pytest.mark.parametrize("window", [1, 5000, 64 << 20])
    def test_others_are_fetched(
        self, client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, window: int
    ) -> None:
        self.hide_scratch(monkeypatch)
        assert self.read(client, nodes, mixed(nodes), window).equals(
            pa.concat_tables([rows(i) for i in range(6)])
        )

    def test_or_come_through_the_scheduler_if_workers_are_out_of_reach(
        self, client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def refuse(ranges: Any, check: Any = ()) -> None:
            raise OSError("not from here")

        self.hide_scratch(monkeypatch)
        for worker in nodes.workers:
            monkeypatch.setitem(worker.handlers, "headwater_fetch", refuse)
        assert self.read(client, nodes, mixed(nodes)).equals(pa.concat_tables([rows(i) for i in range(6)]))

    def test_what_is_gone_is_named(
        self, client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        segments = mixed(nodes)
        nodes.b.delete_blocks([segments[3].path])
        with pytest.raises(FetchFailedError) as caught:
            self.read(client, nodes, segments)
        assert caught.value.lost == ((0, 3, 0),)
        self.hide_scratch(monkeypatch)
        with pytest.raises(FetchFailedError) as caught:
            self.read(client, nodes, segments)
        assert caught.value.lost == ((0, 3, 0),)

    @staticmethod
    def hide_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
        def elsewhere(root: object) -> str:
            raise FileNotFoundError(root)

        monkeypatch.setattr(collect, "read_identity", elsewhere)


def program(stage: int = 1) -> StageProgram:
    return StageProgram("r1", stage, "key", "read", BlockLeaf(0, 0, SCHEMA), SCHEMA)


def task(nodes: Nodes, segments: list[Segment], id: int = 0, attempt: int = 0) -> Task:
    given = tuple(PartitionInput(i, {0: (segment,)}) for i, segment in enumerate(segments))
    return Task("r1", 1, id, attempt, given, nodes=nodes.addresses)


class TestTheWorkerPlugin:
    """A worker becomes able to run tasks, and answers the driver's calls."""

    def test_a_task_runs_on_the_node_it_is_sent_to(self, client: Client, nodes: Nodes) -> None:
        work, payload = task(nodes, mixed(nodes)), pack_program(program())
        address = nodes.workers[1].address
        result = client.submit(execute, work, payload, workers=[address], pure=False).result(timeout=30)
        assert (result.node, result.worker) == (nodes.b.node, address)
        assert result.metrics.local_bytes == result.metrics.remote_bytes > 0
        blocks = [part.block for part in result.partitions]
        found = fetch_segments(client, [block.whole() for block in blocks], nodes.addresses, SCHEMA)
        assert pa.concat_tables(found).equals(pa.concat_tables([rows(i) for i in range(6)]))

    def test_a_lost_block_reaches_the_driver_by_name(self, client: Client, nodes: Nodes) -> None:
        segments, payload = mixed(nodes), pack_program(program())
        nodes.a.delete_blocks([segments[2].path])
        heard: queue.Queue[Any] = queue.Queue()
        client.subscribe_topic("headwater-runs", lambda event: heard.put(event[1]))
        for attempt, worker in enumerate(nodes.workers[:2]):
            work = task(nodes, segments, attempt=attempt)
            future = client.submit(execute, work, payload, workers=[worker.address], pure=False)
            message = heard.get(timeout=30)
            assert (message["kind"], message["worker"]) == ("inputs lost", worker.address)
            assert (message["stage"], message["id"], message["attempt"]) == (1, 0, attempt)
            assert [tuple(block) for block in message["lost"]] == [(0, 2, 0)]
            moved = pack_segments({segments[2]: put(nodes.b, 2, attempt=1).whole()})
            answer = {"run": "r1", "name": work.name, "segments": moved, "nodes": nodes.addresses}
            assert self.call(client, worker.address, "relocate", **answer)["known"]
            assert future.result(timeout=30).metrics.rows_in == 600
        assert not self.call(client, nodes.workers[0].address, "relocate", **answer)["known"]
        client.unsubscribe_topic("headwater-runs")

    def test_tasks_of_a_driver_that_was_replaced_are_refused(self, client: Client, nodes: Nodes) -> None:
        address, payload = nodes.workers[0].address, pack_program(program())
        assert self.call(client, address, "fence", run="r1", epoch=3)["epoch"] == 3
        work = task(nodes, mixed(nodes))
        with pytest.raises(CancelledTask, match="replaced"):
            client.submit(execute, work, payload, workers=[address], pure=False).result(timeout=30)
        current = replace(work, epoch=3, attempt=30_000)
        assert client.submit(execute, current, payload, workers=[address], pure=False).result(timeout=30)
        assert self.call(client, address, "release", run="r1", epoch=2)["replaced"]
        assert nodes.a.runs() == ["r1"]

    def test_a_task_that_comes_after_its_run_leaves_no_folder(self, client: Client, nodes: Nodes) -> None:
        address, payload = nodes.workers[0].address, pack_program(program())
        work = task(nodes, mixed(nodes))
        self.call(client, address, "release", run="r1")
        with pytest.raises(CancelledTask, match="over"):
            client.submit(execute, work, payload, workers=[address], pure=False).result(timeout=30)
        assert nodes.a.runs() == []

    def test_progress_of_what_runs(
        self, client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = threading.Event()

        async def asks(ranges: Any, check: Any = ()) -> None:
            asked.set()
            await never(ranges)

        monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", asks)
        work, address = task(nodes, mixed(nodes, 4)), nodes.workers[0].address
        future = client.submit(execute, work, pack_program(program()), workers=[address], pure=False)
        assert asked.wait(30)
        deadline = time.monotonic() + 30
        while self.call(client, address, "progress", run="r1")["done"] != {work.name: 0.25}:
            assert time.monotonic() < deadline
        self.call(client, address, "cancel", run="r1", names=[work.name])
        wait(future, timeout=30)
        assert self.call(client, address, "progress", run="r1")["done"] == {}

    def test_a_program_is_unpickled_once(self, nodes: Nodes) -> None:
        payload = pack_program(program())
        assert nodes.runtimes[0].program(payload) is nodes.runtimes[0].program(payload)

    def test_cancel_stops_a_task_that_waits(
        self, client: Client, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = threading.Event()

        async def asks(ranges: Any, check: Any = ()) -> None:
            asked.set()
            await never(ranges)

        monkeypatch.setitem(nodes.workers[1].handlers, "headwater_fetch", asks)
        work, address = task(nodes, mixed(nodes)), nodes.workers[0].address
        future = client.submit(execute, work, pack_program(program()), workers=[address], pure=False)
        assert asked.wait(30)
        self.call(client, address, "cancel", run="r1", names=[work.name])
        wait(future, timeout=30)
        with pytest.raises(CancelledTask):
            future.result(timeout=30)
        left = [block.partition for block in nodes.a.blocks("r1") if block.stage == 1]
        assert len(left) < len(
            work.partitions
        )  # what it had finished may stay, what it waited for isn't there

    def test_cancel_reaches_a_task_that_has_yet_to_begin(self, client: Client, nodes: Nodes) -> None:
        address, payload = nodes.workers[0].address, pack_program(program())
        work = task(nodes, mixed(nodes), id=5)
        self.call(client, address, "cancel", run="r1", names=[work.name])
        future = client.submit(execute, work, payload, workers=[address], pure=False)
        with pytest.raises(CancelledTask):
            future.result(timeout=30)
        again = replace(work, attempt=1)
        assert client.submit(execute, again, payload, workers=[address], pure=False).result(timeout=30)

    def test_release_deletes_blocks_and_runs(self, client: Client, nodes: Nodes) -> None:
        address = nodes.workers[1].address
        blocks = [put(nodes.b, i) for i in range(3)]
        answer = self.call(client, address, "release", run="r1", paths=[blocks[0].path])
        assert answer["freed_bytes"] == blocks[0].bytes
        assert [block.partition for block in nodes.b.blocks("r1")] == [1, 2]
        self.call(client, address, "release", run="r1")
        assert nodes.b.runs() == []
        assert nodes.b.space.used_bytes() == 0

    def test_info_tells_node_and_versions(self, client: Client, nodes: Nodes) -> None:
        info = self.call(client, nodes.workers[2].address, "info")
        assert (info["node"], info["scratch"]) == (nodes.b.node, str(nodes.b.root))
        assert info["versions"]["pyarrow"] == pa.__version__
        assert info["threads"] == 2

    def test_a_function_that_can_t_be_sent_is_named(self) -> None:
        with pytest.raises(SerializationError, match=r"stage 1 \(read\)"):
            pack_program(replace(program(), sink=threading.Lock()))  # type: ignore[arg-type]

    def test_a_program_that_can_t_be_loaded_is_named(self, nodes: Nodes) -> None:
        payload = cloudpickle.dumps(program()).replace(b"StageProgram", b"StagePrograx")
        with pytest.raises(SerializationError, match="can't load"):
            nodes.runtimes[0].program(payload)

    @staticmethod
    def call(client: Client, address: str, operation: str, **arguments: Any) -> dict[str, Any]:
        async def call() -> dict[str, Any]:
            return await getattr(client.rpc(address), f"headwater_{operation}")(**arguments)

        return client.sync(call)


def test_registering_the_plugin_makes_every_worker_able_to_run(
    client: Client, cluster: LocalCluster, tmp_path: Path
) -> None:
    worker = next(iter(cluster.workers.values()))
    with pytest.raises(ClusterError, match="no Headwater plugin"):
        runtime_of(worker)
    threads = pa.cpu_count(), pa.io_thread_count()
    try:
        client.register_plugin(HeadwaterWorkerPlugin(str(tmp_path)))
        made = [runtime_of(worker) for worker in cluster.workers.values()]
        assert {runtime.store.root for runtime in made} == {tmp_path}
        client.register_plugin(HeadwaterWorkerPlugin(str(tmp_path / "other")))
        assert [runtime_of(worker) for worker in cluster.workers.values()] == made
        assert pa.cpu_count() == 1
    finally:
        client.unregister_worker_plugin("headwater")
        pa.set_cpu_count(threads[0])
        pa.set_io_thread_count(threads[1])
        for worker in cluster.workers.values():
            del worker.headwater
