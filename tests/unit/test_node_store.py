"""A node's scratch folder: one identity, whole files, a shared quota, and no litter after a crash."""

import json
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from headwater.errors import DiskFullError, HeadwaterError
from headwater.lineage.owner import Owner, this_process
from headwater.runtime.nodes import inventory
from headwater.runtime.nodes.block_index import BlockLabel
from headwater.runtime.nodes.blocks import BlockWriter
from headwater.runtime.nodes.node_store import NodeStore, default_scratch, read_identity
from headwater.runtime.workers.exchange import write_block


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    store = NodeStore(tmp_path)
    store.open_run("r1")
    return store


@pytest.fixture(scope="module")
def dead() -> Owner:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(this_process(), pid=process.pid, started=psutil.Process(process.pid).create_time())
    assert owner.is_alive() is True
    process.communicate(b"\n")
    return owner


def put(store: NodeStore, partition: int, data: bytes, run: str = "r1", quota: int | None = None) -> str:
    with store.create_block(run, 0, partition, 0, quota) as file:
        file.stream.write(data)
        file.publish()
        return file.path


def files_under(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file()}


def _identity(root: str) -> str:
    return NodeStore(root).node


def _put_bytes(root: str, partition: int, count: int, quota: int | None) -> str:
    try:
        return put(NodeStore(root), partition, bytes(count), quota=quota)
    except DiskFullError:
        return "full"


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("forkserver"))


def test_processes_that_start_together_agree_on_the_nodes_id(tmp_path: Path) -> None:
    with _processes(4) as pool:
        ids = set(pool.map(_identity, [str(tmp_path)] * 16))
    assert ids == {read_identity(tmp_path)}


def test_folders_are_different_nodes(tmp_path: Path) -> None:
    assert NodeStore(tmp_path / "a").node != NodeStore(tmp_path / "b").node


def test_default_scratch_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADWATER_SCRATCH", str(tmp_path))
    assert default_scratch() == tmp_path
    monkeypatch.delenv("HEADWATER_SCRATCH")
    assert str(os.getuid()) in default_scratch().name


def test_a_block_appears_complete_or_not_at_all(store: NodeStore) -> None:
    with store.create_block("r1", 2, 5, 1) as file:
        file.stream.write(b"x" * 100)
        assert store.blocks("r1") == []
        file.publish()
    (block,) = store.blocks("r1")
    assert (block.stage, block.partition, block.attempt, block.bytes) == (2, 5, 1, 100)
    assert store.resolve(block.path).read_bytes() == b"x" * 100


def _fail_after(store: NodeStore, count: int) -> None:
    with store.create_block("r1", 0, 0, 0) as file:
        file.stream.write(bytes(count))
        file.account()
        assert store.space.used_bytes() == count
        raise RuntimeError


def test_a_block_whose_writer_fails_leaves_nothing(store: NodeStore) -> None:
    before = files_under(store.root)
    with pytest.raises(RuntimeError):
        _fail_after(store, 3 << 20)
    assert files_under(store.root) - {"ledger.json"} == before
    assert store.space.used_bytes() == 0


def test_publishing_again_counts_the_block_once(store: NodeStore) -> None:
    put(store, 0, bytes(100))
    put(store, 0, bytes(70))
    assert store.space.used_bytes() == 70


def test_the_quota_holds_for_all_processes_of_a_node(store: NodeStore) -> None:
    with _processes(4) as pool:
        jobs = [pool.submit(_put_bytes, str(store.root), i, 1000, 5500) for i in range(12)]
        paths = [path for path in (job.result() for job in jobs) if path != "full"]
    assert len(paths) == 5
    assert store.space.used_bytes() == 5000
    store.delete_blocks(paths[:1])
    assert put(store, 99, bytes(1500), quota=5500)


def test_a_full_quota_says_where_how_much_and_what_to_do(store: NodeStore) -> None:
    put(store, 0, bytes(600))
    with pytest.raises(DiskFullError) as caught:
        put(store, 1, bytes(500), quota=900)
    message = str(caught.value)
    for part in (
        store.node[:8],
        str(store.root),
        "600 B used",
        "quota is 900 B",
        "500 B more",
        "Raise the quota",
    ):
        assert part in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message
    assert len(store.blocks("r1")) == 1
    assert store.space.used_bytes() == 600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_disk_full_error(store: NodeStore) -> None:
    rows = pa.table({"x": np.arange(500_000)})
    with store.create_block("r1", 0, 0, 0) as file:
        file.stream = pa.BufferedOutputStream(pa.OSFile("/dev/full", "wb"), 1 << 16)
        with pytest.raises(DiskFullError, match="its disk has"):
            BlockWriter(file, rows.schema, 1).write(0, rows)
    assert store.blocks("r1") == []


def test_what_a_dead_process_was_promised_is_forgotten_when_space_is_short(
    store: NodeStore, dead: Owner
) -> None:
    with store.space.ledger.locked() as balance:
        balance.pending[str(dead.pid)] = 900
    assert put(store, 0, bytes(500), quota=1000)
    assert store.space.used_bytes() == 500


def test_a_torn_ledger_is_not_fatal(store: NodeStore) -> None:
    put(store, 0, bytes(100))
    (store.root / "ledger.json").write_text('{"comm')
    put(store, 1, bytes(50))
    store.purge_orphans()
    assert store.space.used_bytes() == 150


def test_removing_a_run_removes_only_that_run(store: NodeStore) -> None:
    store.open_run("r2")
    put(store, 0, bytes(100))
    put(store, 0, bytes(30), run="r2")
    assert store.remove_run("r1") == 100
    assert store.remove_run("r1") == 0
    assert store.runs() == ["r2"]
    assert store.space.used_bytes() == 30


def test_deleting_a_block_that_is_gone_is_fine(store: NodeStore) -> None:
    path = put(store, 0, bytes(100))
    assert store.delete_blocks([path]) == 100
    assert store.delete_blocks([path]) == 0


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "runs/../../x", "node.json"])
def test_paths_out_of_the_store_are_refused(store: NodeStore, path: str) -> None:
    with pytest.raises(HeadwaterError, match="isn't a block"):
        store.resolve(path)


def test_a_spill_folder_is_gone_after_use(store: NodeStore) -> None:
    with store.spill_folder("r1", "s0-t0#0") as folder:
        with store.create_spill(folder) as file:
            file.stream.write(bytes(50))
            assert file.finish() == 50
            assert store.space.used_bytes() == 50
        (folder / "other").write_bytes(b"x")
    assert not folder.exists()
    assert store.space.used_bytes() == 0


def test_purge_removes_runs_of_dead_drivers_once_they_are_old_enough(tmp_path: Path, dead: Owner) -> None:
    store = NodeStore(tmp_path)
    store.open_run("alive", this_process())
    store.open_run("dead", dead)
    put(store, 0, bytes(10), run="alive")
    put(store, 0, bytes(20), run="dead")
    assert store.purge_orphans(keep_seconds=3600) == []
    assert store.purge_orphans(keep_seconds=0) == ["dead"]
    assert store.runs() == ["alive"]
    assert store.space.used_bytes() == 10


def test_purge_spares_runs_of_drivers_elsewhere_unless_long_idle(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    folder = store.open_run("far", replace(this_process(), machine="another"))
    assert store.purge_orphans(keep_seconds=0) == []
    month_ago = time.time() - 30 * 86_400
    os.utime(folder / "owner.json", (month_ago, month_ago))
    assert store.purge_orphans(keep_seconds=0) == ["far"]


def test_a_reused_process_id_is_another_process() -> None:
    assert replace(this_process(), started=this_process().started - 100).is_alive() is False


def test_a_resumed_run_belongs_to_its_new_driver(tmp_path: Path, dead: Owner) -> None:
    store = NodeStore(tmp_path)
    store.open_run("r1", dead)
    folder = store.open_run("r1", this_process())
    assert Owner(**json.loads((folder / "owner.json").read_text())) == this_process()
    assert store.purge_orphans(keep_seconds=0) == []


def test_purge_removes_drafts_and_spills_of_dead_processes_only(store: NodeStore, dead: Owner) -> None:
    run = store.root / "runs" / "r1"
    stale = [run / "blocks" / f".s0-p0-a0.arrow.{dead.pid}-0a.tmp", run / f".owner.json.{dead.pid}-0a.tmp"]
    for path in stale:
        path.write_bytes(b"half")
    (run / "spill" / f"{dead.pid}-s0-t0#0-x").mkdir()
    with store.create_block("r1", 0, 1, 0) as file, store.spill_folder("r1", "mine") as mine:
        store.purge_orphans()
        assert file.draft.exists()
        assert [path.name for path in (run / "spill").iterdir()] == [mine.name]
        assert not any(path.exists() for path in stale)


def put_rows(store: NodeStore, stage: int, partition: int, attempt: int, run: str = "r1") -> str:
    rows = pa.table({"x": range(partition)})
    label = BlockLabel(run, stage, f"key{stage}", partition, attempt, f"f{partition}")
    with store.create_block(run, stage, partition, attempt) as file:
        write_block(file, iter([rows]), rows.schema, label=lambda: label)
        file.publish()
    return file.path


def test_an_inventory_lists_what_blocks_say_of_themselves(store: NodeStore) -> None:
    paths = [put_rows(store, *which) for which in ((1, 2, 0), (0, 10, 0), (0, 9, 10_000), (0, 9, 1))]
    found = store.inventory("r1")
    blocks = [result.block for result in found]
    assert [block.path for block in blocks if block] == [paths[3], paths[2], paths[1], paths[0]]
    assert [(result.index, result.rows, result.fingerprint) for result in found] == [
        (9, 9, "f9"),
        (9, 9, "f9"),
        (10, 10, "f10"),
        (2, 2, "f2"),
    ]
    assert {block.node for block in blocks if block} == {store.node}
    assert len(store.inventory("r1", {0: "key0", 1: "other"})) == 3
    assert store.inventory("no-such-run") == []


def test_an_inventory_leaves_out_what_is_not_a_block_of_the_run(store: NodeStore) -> None:
    good = put_rows(store, 0, 1, 0)
    put(store, 7, b"garbage")
    folder = store.resolve(good).parent
    (folder / "s0-p2-a0.arrow").write_bytes(store.resolve(good).read_bytes())  # says that it is another
    (folder / "s0-p3-a0.arrow").write_bytes(store.resolve(good).read_bytes()[:-1])
    store.open_run("r2")
    os.link(store.resolve(good), store.root / "runs" / "r2" / "blocks" / "s0-p1-a0.arrow")
    assert [result.block.path for result in store.inventory("r1") if result.block] == [good]
    assert store.inventory("r2") == []


def test_a_file_is_read_once_until_it_changes(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = inventory.read_index, []
    monkeypatch.setattr(inventory, "read_index", lambda path: seen.append(path) or read(path))
    paths = [put_rows(store, 0, partition, 0) for partition in range(3)]
    assert len(store.inventory("r1")) == 3
    assert len(store.inventory("r1")) == 3
    assert len(seen) == 3
    store.delete_blocks(paths[:1])
    put_rows(store, 0, 2, 0)
    assert len(store.inventory("r1")) == 2
    assert len(seen) == 4
    store.remove_run("r1")
    assert store.inventory("r1") == []
