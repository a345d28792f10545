"""`headwater resume` after a local cluster was killed with its driver: the blocks are still on the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from headwater.lineage.journal import list_runs, read

pytestmark = [pytest.mark.fault, pytest.mark.cluster]

PIPELINE = textwrap.dedent(
    """
    import time
    import headwater as hw

    def slow(batch):
        time.sleep(0.1)
        return batch

    @hw.pipeline
    def counts(out: str):
        rows = hw.range(3_000_000, partitions=48).map_batches(slow, schema={"id": "int64"})
        keyed = rows.with_columns(key=hw.col("id") % 7)
        return {"counts": keyed.group_by("key").agg(n=hw.count()).sort("key").write_parquet(out)}
    """
)


def headwater(*words: str) -> list[str]:
    return [sys.executable, "-m", "headwater.cli", *words]


def finished_tasks(journal: Path) -> int:
    runs = list_runs(journal)
    return sum(record[0] == "task" for entry in runs for record in read(entry.run, journal))


def until(condition, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_resume_takes_the_scratch_folder_of_a_dead_local_cluster(tmp_path: Path):
    (tmp_path / "counts.py").write_text(PIPELINE)
    (tmp_path / "temporary").mkdir()
    environment = {
        **os.environ,
        "HEADWATER_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
    }
    journal = tmp_path / "home" / "runs"
    out = tmp_path / "out"
    first = subprocess.Popen(
        headwater("run", str(tmp_path / "counts.py"), "--param", f"out={out}", "--workers", "2", "--quiet"),
        env=environment,
    )
    workers: list[psutil.Process] = []
    try:
        assert until(lambda: journal.exists() and finished_tasks(journal) >= 2)
        workers = psutil.Process(first.pid).children(recursive=True)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert until(lambda: not any(worker.is_running() for worker in workers))  # they go with their scheduler
    (entry,) = list_runs(journal)
    assert entry.state == "died"
    report = tmp_path / "report.json"
    words = headwater("resume", entry.run, "--quiet", "--report-json", str(report))
    told = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    recovery = json.loads(report.read_text())["recovery"]
    assert recovery["adopted"] > 0
    assert "found on nodes, and not computed" in told.stdout
    assert pd.read_parquet(out)["n"].tolist() == [len(range(key, 3_000_000, 7)) for key in range(7)]
    assert list_runs(journal)[0].state == "finished"
    assert not any((tmp_path / "temporary").glob("headwater-*"))  # the folder went with the second session
