"""A run over two nodes: a Dask scheduler and two groups of worker processes with separate scratch folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client

import headwater as hw
from headwater.errors import VersionMismatchError

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PIPELINE = '''
import headwater as hw
from headwater import col


@hw.pipeline
def visits(rows: int = 4_000_000):
    """Join and count generated rows, with a shuffle on each side."""
    ids = hw.range(rows, partitions=8)
    left = ids.with_columns(key=(col("id") * 7919) % 1000, value=col("id") % 17)
    right = ids.filter(col("id") < 1000).with_columns(label=col("id").cast("string"))
    joined = left.join(right, left_on="key", right_on="id", strategy="shuffle")
    return {"counts": joined.group_by("label").agg(n=hw.count(), total=hw.sum("value")).sort("label")}
'''


def _start(command: str, *arguments: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            f"distributed.cli.{command}",
            "--host",
            "127.0.0.1",
            "--no-dashboard",
            *arguments,
        ],
        env={**os.environ, "DASK_DISTRIBUTED__DASHBOARD__ENABLED": "false", **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def cluster(folder: Path, workers: Sequence[dict[str, str]]) -> Iterator[str]:
    """Run a scheduler, and workers with these environments; give the address."""
    contact = str(folder / "scheduler.json")
    processes = [_start("dask_scheduler", "--port", "0", "--scheduler-file", contact)]
    try:
        for number, environment in enumerate(workers):
            local = ["--local-directory", str(folder / f"dask-{number}")]
            common = ["--scheduler-file", contact, "--no-nanny", "--nthreads", "1", *local]
            processes.append(_start("dask_worker", *common, **environment))
        with Client(scheduler_file=contact, timeout=60) as client:
            client.wait_for_workers(len(workers), timeout=60)
            address = client.scheduler.address
        yield address
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[str, list[Path]]]:
    """A scheduler and two workers on each of two nodes: its address, and the scratch folders."""
    scratch = [tmp_path / "node-a", tmp_path / "node-b"]
    with cluster(tmp_path, [{"HEADWATER_SCRATCH": str(folder)} for folder in scratch * 2]) as address:
        yield address, scratch


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

    shuffled = [stage["partitions"] for stage in told["stages"] if "join" in stage["label"]]
    assert shuffled[0] > 1, "the join has several partitions, so that both nodes reduce"

    namespace: dict = {}
    exec(PIPELINE, namespace)
    with hw.Session("inline") as session, session.run(namespace["visits"].bind()) as clean:
        assert told["outputs"]["counts"]["digest"] == clean.digest("counts")
        assert clean.table("counts").column("n").to_pylist() == [4000] * 1000
    for folder in scratch:
        assert not list(folder.rglob("*.arrow")), "the run's blocks are removed when it ends"


def test_joining_a_cluster_with_other_versions_names_worker_and_package(tmp_path: Path):
    older = tmp_path / "older" / "pyarrow-1.0.0.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: pyarrow\nVersion: 1.0.0\n")
    scratch = {"HEADWATER_SCRATCH": str(tmp_path / "node")}
    workers = [scratch, {**scratch, "PYTHONPATH": str(older.parent)}]
    with (
        cluster(tmp_path, workers) as address,
        pytest.raises(VersionMismatchError, match=r"worker tcp://\S+: pyarrow 1\.0\.0 \(here ") as caught,
    ):
        hw.Session(address).start()
    assert str(caught.value).count("worker tcp://") == 1
