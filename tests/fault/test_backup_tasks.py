"""A slow worker's tasks get backups: the first finisher counts, a sink gets each row once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import pandas as pd
import pytest

import headwater as hw
from headwater.chaos.cluster import ChaosCluster

pytestmark = [pytest.mark.fault, pytest.mark.cluster]

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NODES, ROWS, PARTITIONS = 3, 4000, 40


def busy(batch):
    """Keep a processor busy for a while, whatever its speed."""
    total = 0
    for i in range(300_000):
        total += i * i
    return batch


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Let a process run for a tenth of the time only."""
    ended = threading.Event()

    def pulse() -> None:
        while not ended.wait(0.01):
            os.kill(pid, signal.SIGSTOP)
            ended.wait(0.09)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_slow_worker_is_backed_up_and_a_sink_gets_each_row_once(cluster: ChaosCluster, tmp_path: Path):
    rows = hw.range(ROWS, partitions=PARTITIONS).map_batches(busy, schema={"id": "int64"})
    kept = rows.write_parquet(str(tmp_path / "out"))
    slow = cluster.nodes[0].workers[0]
    with slowed(slow.pid), hw.Session(cluster.address) as session:
        result = session.run({"kept": kept, "count": rows.agg(n=hw.count())})
        assert result.table("count")["n"].to_pylist() == [ROWS]
        recovery = result.report.recovery
    assert slow.lives()
    assert sorted(pd.read_parquet(tmp_path / "out")["id"]) == list(range(ROWS))
    assert os.listdir(tmp_path) == ["out"]
    assert recovery.backups >= 1
    assert recovery.backups_won >= 1
    assert recovery.losses == ()
