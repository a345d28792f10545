"""Workers come and go politely while a run goes on: Dask's adapt(), nodes that join, nodes that leave."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import pandas as pd
import pytest

import headwater as hw
from headwater.chaos.cluster import ChaosCluster
from headwater.runtime.cluster import start_local

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS, PARTITIONS = 40_000, 200


def slow(batch):
    """Take some time, as real work does."""
    time.sleep(0.03)
    return batch


def pipeline(function: Callable = slow) -> hw.Dataset:
    rows = hw.range(ROWS, partitions=PARTITIONS).map_batches(function, schema={"id": "int64"})
    keyed = rows.with_columns(key=hw.col("id") % 97)
    return keyed.group_by("key").agg(n=hw.count(), total=hw.sum("id")).sort("key")


def expected() -> pd.DataFrame:
    ids = pd.Series(range(ROWS))
    return ids.groupby(ids % 97).agg(["count", "sum"])


def check(table) -> None:
    assert table["n"].to_pylist() == expected()["count"].tolist()
    assert table["total"].to_pylist() == expected()["sum"].tolist()


def test_adapt_grows_and_shrinks_a_cluster_under_runs(tmp_path: Path):
    grown = tmp_path / "grown"

    def slow_at_first(batch):
        """After a quarter of the rows, wait for somebody else to come."""
        deadline = time.monotonic() + 60
        while ROWS // 4 in batch["id"] and not grown.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return slow(batch)

    def observe(snapshot) -> None:
        if snapshot.workers > 1:
            grown.touch()

    cluster, client = start_local(1, scratch=tmp_path / "scratch")
    with cluster, client:
        cluster.adapt(minimum=1, maximum=3, interval="50ms", wait_count=2)
        with hw.Session(cluster.scheduler_address, progress=observe) as session:
            first = pipeline(slow_at_first).compute(session)
            assert grown.exists()
            deadline = time.monotonic() + 60
            while len(client.scheduler_info()["workers"]) > 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(client.scheduler_info()["workers"]) == 1
            second = session.run({"out": pipeline()})
            check(first)
            check(second.table("out"))
    assert second.report.recovery.partitions_rerun == {}


@pytest.fixture
def cluster() -> Iterator[ChaosCluster]:
    with ChaosCluster(nodes=2) as cluster:
        yield cluster


def test_a_node_that_joins_gets_work_and_one_that_leaves_costs_nothing(cluster: ChaosCluster):
    events: list[str] = []

    def observe(snapshot) -> None:
        done = snapshot.stages[0].done
        if not events and done >= PARTITIONS // 6:
            events.append("join")
            cluster.add_node()
            cluster.wait_until_whole()
        elif events == ["join"] and snapshot.nodes == 3:
            events.append("leave")
            cluster.nodes[0].workers[0].signal(signal.SIGTERM)

    with hw.Session(cluster.address, progress=observe) as session:
        result = session.run({"out": pipeline()})
        check(result.table("out"))
        recovery = result.report.recovery
    assert events == ["join", "leave"]
    assert (recovery.rerun, recovery.minimum, recovery.blocks_lost) == (0, 0, 0)
    assert cluster.nodes[0].workers[0].popen.wait(timeout=60) == 0
    assert os.path.isdir(cluster.nodes[2].scratch / "runs")
