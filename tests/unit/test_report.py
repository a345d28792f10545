"""The run report and snapshots, over a run whose results are made by hand."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from headwater.lineage.fingerprint import Fingerprint, content_digest
from headwater.ops.source import Source, Split
from headwater.planner.plan import PhysicalPlan, ScanLeaf, Stage
from headwater.runtime.report import build_report
from headwater.runtime.scheduler import Scheduler
from headwater.runtime.scheduler_events import Launch, TaskFinished, WorkerJoined, WorkerLeft
from headwater.runtime.snapshot import snapshot_of
from headwater.runtime.task import Block, Metrics, PartitionResult, TaskResult

SCHEMA = pa.schema([("x", pa.int64())])
TABLES = [pa.table({"x": range(p * 10, p * 10 + p)}, SCHEMA) for p in range(4)]


def finish(scheduler: Scheduler, launch: Launch, node: str) -> list:
    done = []
    for item in launch.task.partitions:
        table = TABLES[item.index]
        digest = Fingerprint(SCHEMA).update(table).hexdigest()
        attempt = launch.task.attempt
        rows = np.array([table.num_rows])
        block = Block(0, item.index, attempt, node, f"p{item.index}", np.array([0, 50]), rows, 100, digest)
        done.append(PartitionResult(item.index, table.num_rows, digest, block))
    metrics = Metrics(0.5, rows_in=7, rows_out=len(done), local_bytes=3, remote_bytes=4, spilled_bytes=5)
    result = TaskResult(0, launch.task.id, launch.task.attempt, node, launch.worker, tuple(done), metrics)
    return scheduler.handle(TaskFinished(result))


@pytest.fixture
def scheduler() -> Scheduler:
    leaf = ScanLeaf(0, Source(), ("x",), None, None, SCHEMA)
    splits = {0: tuple(Split(p, None, 64 << 20) for p in range(4))}
    plan = PhysicalPlan((Stage(0, "k", "scan", leaf, 4, SCHEMA, splits),), {"out": 0})
    return Scheduler(plan, "r1")


def test_report_tells_rows_bytes_and_a_digest_that_partitions_do_not_change(scheduler):
    queue = scheduler.handle(WorkerJoined("w", "n", threads=4))
    for launch in [i for i in queue if isinstance(i, Launch)]:
        finish(scheduler, launch, "n")
    report = build_report(scheduler, "finished", 2.0, {0: 1.5}, "rides", {"python": "3"}, 99).to_dict()
    whole = pa.concat_tables(TABLES)
    expected = content_digest([Fingerprint(SCHEMA).update(whole).hexdigest()], SCHEMA)
    assert report["outputs"]["out"] == {
        "rows": whole.num_rows, "bytes": 400, "digest": expected, "partitions": 4, "files": 0,
    }  # fmt: skip
    stage = report["stages"][0]
    assert (stage["tasks"], stage["attempts"], stage["seconds"], stage["wall_seconds"]) == (4, 4, 2.0, 1.5)
    assert (stage["rows_in"], stage["local_bytes"], stage["remote_bytes"], stage["spilled_bytes"]) == (
        28,
        12,
        16,
        20,
    )
    assert (report["run"], report["pipeline"], report["journal_bytes"]) == ("r1", "rides", 99)


def test_report_tells_what_failures_cost_and_is_json(scheduler):
    queue = scheduler.handle(WorkerJoined("w", "n", threads=4))
    launches = [i for i in queue if isinstance(i, Launch)]
    finish(scheduler, launches[0], "n")
    again = scheduler.handle(WorkerLeft("w"), WorkerJoined("v", "m", threads=4))
    while launches := [i for i in again if isinstance(i, Launch)]:
        again = [i for launch in launches for i in finish(scheduler, launch, "m")]
    report = json.loads(build_report(scheduler, "finished", 1.0, {}).to_json())
    recovery = report["recovery"]
    (loss,) = recovery.pop("losses")
    assert (loss["cause"], loss["what"], loss["lost"], loss["tasks"]) == ("died", "node n", 1, 3)
    assert (loss["minimum"], loss["rerun"], loss["returned"]) == (1, 1, 0)
    expected = {
        "workers_lost": 1, "nodes_lost": 1, "blocks_lost": 1, "tasks_retried": 3, "partitions_rerun": {"0": [0]},
        "minimum": 1, "rerun": 1,
    }  # fmt: skip
    assert {name: recovery[name] for name in expected} == expected
    assert report["stages"][0]["attempts"] == 8


def test_failed_run_reports_its_error_and_no_outputs(scheduler):
    report = build_report(scheduler, "failed", 1.0, {}, error=ValueError("bad"))
    assert report.error == "ValueError: bad"
    assert report.outputs == {}


def test_snapshot_counts_partitions_and_running_tasks(scheduler):
    queue = scheduler.handle(WorkerJoined("w", "n", threads=4))
    launches = [i for i in queue if isinstance(i, Launch)]
    finish(scheduler, launches[0], "n")
    snapshot = snapshot_of(scheduler, 3.0)
    (stage,) = snapshot.stages
    assert (stage.done, stage.total, stage.running, stage.state, stage.label) == (1, 4, 3, "running", "scan")
    assert (snapshot.workers, snapshot.nodes, snapshot.elapsed) == (1, 1, 3.0)
