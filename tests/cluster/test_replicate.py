"""Blocks are copied between nodes by their workers; two scratch folders in one process stand for two machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from distributed import Client, LocalCluster

from headwater.lineage.owner import this_process
from headwater.runtime.nodes.block_index import BlockLabel
from headwater.runtime.nodes.inventory import unpack_inventory
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import Block, PartitionResult
from headwater.runtime.workers.exchange import write_block
from headwater.runtime.workers.fetch import FetchOptions
from headwater.runtime.workers.kept_service import unpack_kept
from headwater.runtime.workers.worker_runtime import WorkerRuntime

pytestmark = pytest.mark.cluster

DEAD = "tcp://127.0.0.1:1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


class Nodes:
    """Two workers, each a node; blocks are copied from a to b."""

    def __init__(self, client: Client, cluster: LocalCluster, root: Path):
        self.client, self.root = client, root
        self.a, self.b = NodeStore(root / "a"), NodeStore(root / "b")
        self.workers = list(cluster.workers.values())
        self.install()
        self.a.open_run("r1")

    def install(self, **options: Any) -> None:
        for worker, store in zip(self.workers, (self.a, self.b)):
            WorkerRuntime(worker, store, FetchOptions(connect_seconds=1.0, **options)).install()

    def call(self, node: str, operation: str, **arguments: Any) -> dict[str, Any]:
        address = self.workers["ab".index(node)].address

        async def call() -> dict[str, Any]:
            return await getattr(self.client.rpc(address), f"headwater_{operation}")(**arguments)

        reply = self.client.sync(call)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in reply.items()}

    def replicate(self, blocks: list[Block], **arguments: Any) -> dict[str, Any]:
        files = [(block.path, block.bytes) for block in blocks]
        source = {"source": self.workers[0].address, **arguments}
        return self.call("b", "replicate", files=files, **source)

    def same(self, path: str) -> bool:
        return self.a.resolve(path).read_bytes() == self.b.resolve(path).read_bytes()


@pytest.fixture
def nodes(client: Client, cluster: LocalCluster, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(client, cluster, tmp_path)
    yield made
    for worker in made.workers:
        del worker.headwater


def put(store: NodeStore, partition: int, rows: int = 100, run: str = "r1") -> Block:
    table = pa.table({"x": np.arange(rows) + partition})
    label = BlockLabel(run, 0, "aa", partition, 0, f"f{partition}", 1.0)
    with store.create_block(run, 0, partition, 0) as file:
        write_block(file, iter([table]), table.schema, label=lambda: label)
        file.publish()
    found = next(result for result in store.inventory(run) if result.index == partition)
    return block_of(found)


def block_of(result: PartitionResult) -> Block:
    assert result.block is not None
    return result.block


@pytest.mark.parametrize("message_bytes", [1000, 1 << 20])
def test_copies_are_the_same_files_at_the_same_path(nodes: Nodes, message_bytes: int) -> None:
    nodes.install(message_bytes=message_bytes)
    blocks = [put(nodes.a, partition, rows=10 + 300 * partition) for partition in range(40)]
    reply = nodes.replicate(blocks)
    assert reply["paths"] == [block.path for block in blocks]
    assert reply["failed"] == {}
    assert all(nodes.same(block.path) for block in blocks)
    node, results = unpack_inventory(reply)
    assert node == nodes.b.node
    assert [block_of(result).whole() for result in results] == [
        replace(block, node=node).whole() for block in blocks
    ]
    assert nodes.b.space.used_bytes() == nodes.a.space.used_bytes() == sum(block.bytes for block in blocks)
    assert len(nodes.b.inventory("r1")) == 40


def test_what_is_here_is_not_copied_again(nodes: Nodes) -> None:
    blocks = [put(nodes.a, partition) for partition in range(3)]
    nodes.replicate(blocks[:2])
    marks = [nodes.b.resolve(block.path).stat().st_mtime_ns for block in blocks[:2]]
    nodes.a.delete_blocks([blocks[0].path])
    assert nodes.replicate(blocks)["paths"] == [block.path for block in blocks]
    assert [nodes.b.resolve(block.path).stat().st_mtime_ns for block in blocks[:2]] == marks
    assert nodes.replicate(blocks, source=DEAD)["failed"] == {}
    assert nodes.b.space.used_bytes() == sum(block.bytes for block in blocks)


def test_what_is_missing_is_named_and_the_rest_comes(nodes: Nodes) -> None:
    blocks = [put(nodes.a, partition) for partition in range(4)]
    nodes.a.delete_blocks([blocks[1].path])
    reply = nodes.replicate(blocks)
    assert reply["paths"] == [blocks[i].path for i in (0, 2, 3)]
    assert list(reply["failed"]) == [blocks[1].path]
    assert "doesn't have it" in reply["failed"][blocks[1].path]


def test_a_sibling_of_a_dead_worker_is_asked(nodes: Nodes) -> None:
    blocks = [put(nodes.a, 0)]
    assert nodes.replicate(blocks, source=[DEAD, nodes.workers[0].address])["failed"] == {}


def test_a_node_that_doesn_t_answer_leaves_nothing_behind(nodes: Nodes) -> None:
    blocks = [put(nodes.a, partition) for partition in range(2)]
    reply = nodes.replicate(blocks, source=DEAD)
    assert reply["paths"] == []
    assert set(reply["failed"]) == {block.path for block in blocks}
    assert [path for path in nodes.b.root.rglob("*") if ".arrow" in path.name] == []
    assert nodes.b.space.used_bytes() == 0


def test_a_damaged_block_is_not_taken(nodes: Nodes) -> None:
    good, bad = put(nodes.a, 0), put(nodes.a, 1)
    path = nodes.a.resolve(bad.path)
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    reply = nodes.replicate([good, bad])
    assert reply["paths"] == [good.path]
    assert "isn't the block" in reply["failed"][bad.path]
    assert nodes.b.space.used_bytes() == good.bytes


def test_a_full_quota_takes_what_fits_and_says_so(nodes: Nodes) -> None:
    nodes.install(message_bytes=500)  # one file at a time
    blocks = [put(nodes.a, partition) for partition in range(4)]
    nodes.b.space.quota_bytes = sum(block.bytes for block in blocks[:2]) + 100
    reply = nodes.replicate(blocks)
    assert reply["paths"] == [block.path for block in blocks[:2]]
    assert "quota" in reply["failed"][blocks[2].path]
    assert set(reply["failed"]) == {blocks[2].path, blocks[3].path}
    assert nodes.b.space.used_bytes() == sum(block.bytes for block in blocks[:2])


@pytest.mark.parametrize(
    "path", ["../a/secret", "node.json", "runs/../../x.arrow", "kept/../x.arrow", "runs/r1/owner.json"]
)
def test_only_blocks_are_copied(nodes: Nodes, path: str) -> None:
    reply = nodes.call("b", "replicate", files=[(path, 10)], source=nodes.workers[0].address)
    assert (reply["paths"], list(reply["failed"])) == ([], [path])


def test_a_run_that_is_known_keeps_its_owner(nodes: Nodes) -> None:
    owner = replace(this_process(), host="elsewhere", machine="another")
    nodes.b.open_run("r1", owner)
    record = (nodes.b.root / "runs" / "r1" / "owner.json").read_text()
    nodes.replicate([put(nodes.a, 0)])
    assert (nodes.b.root / "runs" / "r1" / "owner.json").read_text() == record
    nodes.a.open_run("r2")
    nodes.replicate([put(nodes.a, 0, run="r2")], owner=owner.record())
    assert (nodes.b.root / "runs" / "r2" / "owner.json").read_text() == record


def test_replicated_persist_by_the_drivers_calls(nodes: Nodes) -> None:
    blocks, owner = [put(nodes.a, partition) for partition in range(3)], this_process().record()
    paths = [block.path for block in blocks]
    _, results = unpack_inventory(nodes.call("a", "keep", paths=paths, pinned=True, owner=owner))
    kept = [block_of(result) for result in results]
    nodes.call("b", "pin", keys=["aa"], owner=owner)
    assert nodes.replicate(kept)["failed"] == {}
    assert all(nodes.same(block.path) for block in kept)
    for node in "ab":
        nodes.call(node, "release", run="r1")
    found = dict(
        unpack_kept(nodes.call(node, "use", run="r2", keys=["aa", "bb"], owner=owner)) for node in "ab"
    )
    assert set(found) == {nodes.a.node, nodes.b.node}
    for node, by_key in found.items():
        assert list(by_key) == ["aa"]
        assert [block_of(result).node for result in by_key["aa"]] == [node] * 3
    assert nodes.call("b", "drop", keys=["aa"])["freed_bytes"] == 0  # a run reads them
    nodes.call("b", "release", run="r2")
    assert nodes.call("b", "drop", keys=["aa"])["freed_bytes"] == sum(block.bytes for block in blocks)
    assert unpack_kept(nodes.call("b", "kept", keys=["aa"])) == (nodes.b.node, {})
    nodes.call("a", "unpin", keys=["aa"], owner=owner)
    assert nodes.a.space.used_bytes() == sum(block.bytes for block in blocks)


def test_an_inventory_comes_over_the_wire(nodes: Nodes) -> None:
    blocks = [put(nodes.a, partition) for partition in range(3)]
    node, results = unpack_inventory(nodes.call("a", "inventory", run="r1"))
    assert node == nodes.a.node
    assert [block_of(result).whole() for result in results] == [block.whole() for block in blocks]
    assert unpack_inventory(nodes.call("a", "inventory", run="r1", keys={0: "other"})) == (node, ())
    assert unpack_inventory(nodes.call("b", "inventory", run="r1")) == (nodes.b.node, ())
