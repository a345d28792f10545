"""Persisted and reused results on real workers: memory, pins that end with their process, and nothing that grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import headwater as hw
from headwater import Dataset, Session

pytestmark = pytest.mark.cluster

PIPELINE = """
import headwater as hw

@hw.pipeline
def totals(most: int = 3):
    rows = hw.range(1000, partitions=4).with_columns(zone=hw.col("id") % 7)
    zones = rows.group_by("id").agg(zone=hw.max("zone"))
    return zones.filter(hw.col("zone") < most).agg(n=hw.count())
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    scratch = tmp_path_factory.mktemp("persist") / "scratch"
    with Session(workers=2, scratch=scratch, progress=False) as session:
        yield session


def rows(salt: int) -> Dataset:
    """Rows that no other test persists."""
    return hw.range(40_000, partitions=4).with_columns(zone=hw.col("id") % 7, salt=hw.lit(salt))


def ask(session: Session, operation: str, **arguments: Any) -> list[dict[str, Any]]:
    """Call a handler of every worker."""
    client = session._executor.client

    async def call(address: str) -> dict[str, Any]:
        return await getattr(client.rpc(address), f"headwater_{operation}")(**arguments)

    return [client.sync(call, worker.address) for worker in session._executor.workers()]


def resident(session: Session) -> int:
    return sum(info["resident_bytes"] for info in ask(session, "info"))


def files(session: Session) -> list[Path]:
    return sorted(Path(session.scratch).glob("kept/*/p*.arrow"))


def test_the_next_run_reads_what_the_first_kept(session: Session):
    kept = rows(1).persist()
    with session.run({"out": kept.group_by("zone").agg(n=hw.count()).sort("zone")}) as first:
        digest = first.digest("out")
    with session.run({"out": kept.group_by("zone").agg(n=hw.count()).sort("zone")}) as second:
        assert second.report.stages[0].attempts == 0
        assert second.report.recovery.adopted == 4
        assert second.digest("out") == digest
    before = len(files(session))
    assert kept.unpersist(session) > 0
    assert len(files(session)) == before - 4


def test_memory_is_held_until_it_is_unpersisted(session: Session):
    kept = rows(2).persist("memory")
    kept.count(session)
    size = sum(path.stat().st_size for path in files(session))
    assert resident(session) == size > 0
    kept.count(session)
    assert resident(session) == size
    kept.unpersist(session)
    assert resident(session) == 0


OTHER = """
import sys
import headwater as hw

if __name__ == "__main__":
    with hw.Session(sys.argv[1], progress=False) as session:
        rows = hw.range(40_000, partitions=4).with_columns(zone=hw.col("id") % 7, salt=hw.lit(3))
        print(rows.persist("memory").count(), flush=True)
        input()
"""


def test_pins_and_memory_end_with_the_process_that_asked(session: Session, tmp_path: Path, monkeypatch):
    script = tmp_path / "other.py"
    script.write_text(OTHER)
    address = session._executor.address
    other = subprocess.Popen(
        [sys.executable, script, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "40000\n"
    assert resident(session) > 0
    kept = rows(3).persist()
    with session.run({"out": kept}) as result:  # the same rows, so what the other keeps
        assert result.report.recovery.adopted == 4
    assert kept.unpersist(session) == 0  # the other still wants them
    assert files(session)
    other.kill()
    other.wait()
    ask(session, "unpin", keys=[], owner=None)
    deadline = time.monotonic() + 30
    while resident(session):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_session_that_reuses_begins_where_another_ended(tmp_path: Path):
    for most, adopted in ((3, False), (3, True), (5, True)):
        zones = rows(4).group_by("id").agg(zone=hw.max("zone"))
        output = zones.filter(hw.col("zone") < most).agg(n=hw.count())
        with (
            Session(workers=1, scratch=tmp_path / "scratch", reuse=True, progress=False) as session,
            session.run({"out": output}) as result,
        ):
            assert (result.report.recovery.adopted > 0) == adopted
            assert (result.report.stages[0].attempts == 0) == adopted
            assert result.table("out")["n"].to_pylist() == [sum(i % 7 < most for i in range(40_000))]


def test_headwater_run_reuse(tmp_path: Path):
    (tmp_path / "totals.py").write_text(PIPELINE)
    environment = {**os.environ, "HEADWATER_HOME": str(tmp_path / "home")}
    environment.pop("HEADWATER_SCRATCH", None)

    def run(most: int) -> dict[str, Any]:
        report = tmp_path / "report.json"
        command = [
            sys.executable,
            "-m",
            "headwater.cli",
            "run",
            "totals.py",
            "--reuse",
            "--kept",
            "1 GB",
            "-q",
        ]
        command += ["--workers", "1", "--param", f"most={most}", "--report-json", str(report)]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        return json.loads(report.read_text())

    first, second = run(3), run(5)
    assert first["recovery"]["adopted"] == 0
    assert second["recovery"]["adopted"] > 0
    assert second["stages"][0]["attempts"] == 0
    assert list((tmp_path / "home" / "scratch" / "kept").glob("*/p0.arrow"))


def sizes_of_worker(dask_worker: Any) -> dict[str, int]:
    runtime = dask_worker.headwater
    return {
        "programs": len(runtime._programs),
        "running": len(runtime.running()),
        "indexes": len(runtime.store._indexes),
        "users": len(list(runtime.store.kept.glob("*/users/*"))),
        "runs": len(runtime.store.runs()),
        "tasks": len(dask_worker.state.tasks),
        "broadcasts": len(runtime.broadcasts._entries) if hasattr(runtime.broadcasts, "_entries") else 0,
    }


def sizes_of_scheduler(dask_scheduler: Any) -> dict[str, int]:
    return {"topics": len(dask_scheduler._broker._topics), "tasks": len(dask_scheduler.tasks)}


def sizes(session: Session) -> dict[str, Any]:
    """How much a session and its cluster remember."""
    executor = session._executor
    client, membership = executor.client, executor.membership
    found = {
        "handlers": len(client._event_handlers),
        "futures": len(client.futures),
        "listeners": len(membership._listeners),
        "hearers": len(membership._hearers),
    }
    found.update(client.run_on_scheduler(sizes_of_scheduler))
    return {**found, "workers": list(client.run(sizes_of_worker).values())}


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_is_left_of_runs_that_are_over(session: Session):
    kept = rows(5).persist()
    small = hw.from_arrow({"zone": list(range(7)), "name": list("abcdefg")})

    def once(least: int) -> None:
        joined = kept.filter(hw.col("id") > least).join(small, on="zone", strategy="broadcast")
        assert joined.group_by("name").agg(n=hw.count()).compute(session).num_rows == 7

    for least in range(3):
        once(least)
    before = sizes(session)
    for least in range(12):
        once(least)
    eventually(lambda: sizes(session) == before)
    kept.unpersist(session)
