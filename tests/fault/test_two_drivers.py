"""Two drivers never both write: one that hung is replaced, and finds that out before it changes anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import headwater as hw
from headwater.chaos.cluster import ChaosCluster
from headwater.errors import LeaseHeldError
from headwater.lineage.journal import list_runs, read

pytestmark = [pytest.mark.fault, pytest.mark.cluster]

NODES = 2
#: runs a pipeline into a sink; in the middle of it waits for somebody to write to a pipe; prints how it ended
DRIVER = """
import sys, time
import headwater as hw

address, journal, output, gate = sys.argv[1:]

def slow(batch):
    time.sleep(0.1)
    return batch

waited = []

def observe(snapshot):
    if 5 <= snapshot.stages[0].done < 40 and not waited:
        waited.append(True)
        print("half-way", flush=True)
        open(gate).read()

rows = hw.range(4_000_000, partitions=40).map_batches(slow, schema={"id": "int64"})
counted = rows.with_columns(key=hw.col("id") % 7).group_by("key").agg(n=hw.count(), total=hw.sum("id"))
try:
    with hw.Session(address, journal=journal, progress=observe) as session:
        session.run({"counts": counted.sort("key").write_parquet(output)}, name="counts")
except hw.HeadwaterError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(3)
"""


@pytest.fixture
def stopped(cluster: ChaosCluster, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A driver that was stopped in the middle of its run."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    places = [str(tmp_path / "journal"), str(tmp_path / "out"), str(gate)]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, cluster.address, *places], stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "half-way\n"
        os.kill(driver.pid, signal.SIGSTOP)
        yield driver
    finally:
        driver.kill()
        driver.wait()


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_replaced_driver_changes_nothing(stopped, cluster: ChaosCluster, tmp_path: Path):
    journal, output = tmp_path / "journal", tmp_path / "out"
    (entry,) = list_runs(journal)
    assert entry.state == "running"
    with hw.Session(cluster.address, journal=journal) as session:
        with pytest.raises(LeaseHeldError, match=rf"process {stopped.pid} on"):
            session.resume(entry.run)
        with session.resume(entry.run, steal=True) as result:
            recovery = result.report.recovery
            assert recovery.adopted >= 5
            done = pd.read_parquet(output)
            before = state_of(output)
            os.kill(stopped.pid, signal.SIGCONT)
            (tmp_path / "gate").write_text("go on")
            told, _ = stopped.communicate(timeout=60)
            assert stopped.returncode == 3, told
            assert "FencedError" in told
            assert result.rows("counts") == 7  # its blocks are still there
    ids = pd.Series(np.arange(4_000_000))
    expected = ids.groupby(ids % 7).agg(["count", "sum"])
    assert done["n"].tolist() == expected["count"].tolist()
    assert done["total"].tolist() == expected["sum"].tolist()
    assert state_of(output) == before
    assert sorted(os.listdir(tmp_path)) == ["gate", "journal", "out"]  # and no staging folder
    kinds = [record[0] for record in read(entry.run, journal)]
    assert kinds.count("committed") == 1
    assert kinds[-1] == "finished"
    assert list_runs(journal)[0].state == "finished"
