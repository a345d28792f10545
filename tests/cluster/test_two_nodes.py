"""A run over two nodes: a Dask scheduler and two groups of worker processes with separate scratch folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import headwater as hw

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PIPELINE = '''
import headwater as hw
from headwater import col


@hw.pipeline
def visits(rows: int = 200_000):
    """Join and count generated rows, with a shuffle on each side."""
    ids = hw.range(rows, partitions=8)
    left = ids.with_columns(key=(col("id") * 7919) % 1000, value=col("id") % 17)
    right = ids.filter(col("id") < 1000).with_columns(label=col("id").cast("string"))
    joined = left.join(right, left_on="key", right_on="id", strategy="shuffle")
    return {"counts": joined.group_by("label").agg(n=hw.count(), total=hw.sum("value")).sort("label")}
'''


def _start(arguments: list[str], **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "DASK_DISTRIBUTED__DASHBOARD__ENABLED": "false", **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[str, list[Path]]]:
    """Start a scheduler and two workers on each of two nodes; give its address and the scratch folders."""
    contact = tmp_path / "scheduler.json"
    scratch = [tmp_path / "node-a", tmp_path / "node-b"]
    processes = [
        _start(
            ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
            + ["--scheduler-file", str(contact)]
        )
    ]
    try:
        for folder in scratch:
            for number in range(2):
                local = str(tmp_path / f"{folder.name}-dask-{number}")
                processes.append(
                    _start(
                        [
                            "distributed.cli.dask_worker",
                            "--scheduler-file",
                            str(contact),
                            "--host",
                            "127.0.0.1",
                        ]
                        + ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", local],
                        HEADWATER_SCRATCH=str(folder),
                    )
                )
        yield _address(contact, workers=4), scratch
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _address(contact: Path, workers: int) -> str:
    """The scheduler's address, once it has its workers."""
    from distributed import Client

    deadline = time.monotonic() + 60
    while not contact.exists() or not contact.read_text().strip():
        assert time.monotonic() < deadline, "the scheduler did not start"
        os.sched_yield()
    address = json.loads(contact.read_text())["address"]
    with Client(address, timeout=60) as client:
        client.wait_for_workers(workers, timeout=60)
    return address


def test_the_command_line_runs_on_two_nodes_and_blocks_cross_between_them(two_nodes, tmp_path: Path):
    address, scratch = two_nodes
    file = tmp_path / "visits.py"
    file.write_text(PIPELINE)
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "headwater.cli", "run", str(file), "--scheduler", address]
        + ["--report-json", str(report)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text())
    assert told["outputs"]["counts"]["rows"] == 1000
    assert sum(stage["remote_bytes"] for stage in told["stages"]) > 0
    assert sum(stage["local_bytes"] for stage in told["stages"]) > 0

    namespace: dict = {}
    exec(PIPELINE, namespace)
    with hw.Session("inline") as session, session.run(namespace["visits"].bind()) as clean:
        assert told["outputs"]["counts"]["digest"] == clean.digest("counts")
        assert clean.table("counts").column("n").to_pylist() == [200] * 1000
    for folder in scratch:
        assert not list(folder.rglob("*.arrow")), "the run's blocks are removed when it ends"
