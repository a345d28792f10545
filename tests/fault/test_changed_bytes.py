"""A function that doesn't repeat itself, and a node that dies: what was made of the old bytes is made again, or the
run stops."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater.chaos.cluster import ChaosCluster
from headwater.errors import NonDeterministicError
from headwater.lineage.journal import list_runs, read

pytestmark = [pytest.mark.fault, pytest.mark.cluster]

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

OPTIONS = hw.PlanOptions(partition_bytes=2_000, broadcast_bytes=0)
NODES, ROWS, MAPS = 3, 20_000, 16


def noisy(batch):
    """Add a column that is different each time."""
    return {**batch, "noise": np.random.default_rng().integers(0, 1_000_000, len(batch["id"]))}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A pipe that holds its readers, and what lets them go on, for good."""
    path = str(tmp_path / "gate")
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield path, lambda: os.write(end, b"." * 4096) and None
    os.close(end)


def run_and_kill_a_node(
    cluster: ChaosCluster, gate: tuple[str, Callable[[], None]], journal: Path, deterministic: bool
) -> dict[str, pa.Table]:
    """Sum the noise by key, and the sums; a node dies when some sums are there, and one isn't."""
    path, open_gate = gate

    def held(batch):
        if 3 in batch["key"]:
            with open(path, "rb", buffering=0) as pipe:
                pipe.read(1)
        return batch

    rows = hw.range(ROWS, partitions=MAPS).map_batches(
        noisy, schema={"id": "int64", "noise": "int64"}, deterministic=deterministic
    )
    keyed = rows.with_columns(key=hw.col("id") % 500)
    sums = keyed.group_by("key").agg(noise=hw.sum("noise"), rows=hw.count())
    late = sums.map_batches(held, schema=sums.schema)
    killed: list[str] = []

    def observe(snapshot) -> None:
        some = next((s for s in snapshot.stages if "final" in s.label and 2 <= s.done < s.total), None)
        if some is not None and not killed:
            killed.append(cluster.nodes[0].name)
            cluster.kill_node(cluster.nodes[0])
            open_gate()

    with hw.Session(
        cluster.address, options=OPTIONS, progress=observe, journal=journal, backup_tasks=False
    ) as session:
        result = session.run({"sums": late, "total": keyed.agg(noise=hw.sum("noise"))})
        assert killed
        return {name: result.table(name) for name in ("sums", "total")}


def test_all_outputs_are_of_one_version_of_the_bytes(cluster: ChaosCluster, gate, tmp_path: Path):
    cluster.mend()
    tables = run_and_kill_a_node(cluster, gate, tmp_path / "journal", deterministic=False)
    assert sum(tables["sums"]["noise"].to_pylist()) == tables["total"]["noise"][0].as_py()
    assert tables["sums"]["rows"].to_pylist() == [ROWS // 500] * 500
    (entry,) = list_runs(tmp_path / "journal")
    kinds = {record[0] for record in read(entry.run, tmp_path / "journal")}
    assert {"worker lost", "rerun", "rolled back"} <= kinds


def test_a_function_that_should_repeat_itself_is_named(cluster: ChaosCluster, gate, tmp_path: Path):
    cluster.mend()
    with pytest.raises(NonDeterministicError, match=r"came out different.*map_batches\(noisy\), .*:\d+"):
        run_and_kill_a_node(cluster, gate, tmp_path / "journal", deterministic=True)
