"""Resuming a run: what can be, what can't, and what is said then. Deaths of real drivers are in tests/fault."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

import headwater as hw
from headwater.errors import ParameterError, SourceNotFoundError, UserFunctionError
from headwater.lineage.journal import list_runs
from headwater.session import session_like


def total(rows: hw.Dataset) -> hw.Dataset:
    return rows.with_columns(key=hw.col("id") % 3).group_by("key").agg(n=hw.count()).sort("key")


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "journal")


def test_a_run_that_failed_goes_on_once_its_cause_is_gone(tmp_path: Path, journal: str):
    cause = tmp_path / "cause"
    cause.touch()

    def fails(batch):
        if cause.exists():
            raise ValueError("not yet")
        return batch

    rows = hw.range(100, partitions=4).map_batches(fails, schema=pa.schema([("id", pa.int64())]))
    with hw.Session("inline", journal=journal, scratch=tmp_path / "scratch") as session:
        with pytest.raises(UserFunctionError, match="not yet"):
            session.run({"out": total(rows)}, name="counts")
        (entry,) = list_runs(journal)
        assert entry.state == "failed"
        cause.unlink()
        with session.resume(entry.run) as result:
            assert result.table("out")["n"].to_pylist() == [34, 33, 33]
            assert result.report.pipeline == "counts"
    (entry,) = list_runs(journal)
    assert entry.state == "finished"


def test_what_cant_be_resumed_is_said_and_leaves_nothing(journal: str):
    with hw.Session("inline", journal=journal) as session:
        session.run({"out": total(hw.range(10))}).close()
        (entry,) = list_runs(journal)
        with pytest.raises(ParameterError, match="has finished; there is nothing to resume"):
            session.resume(entry.run)
        with pytest.raises(SourceNotFoundError, match=f"no run 'nothing'.*{entry.run}"):
            session.resume("nothing")
        assert os.listdir(journal) == [entry.run]
    with (
        hw.Session("inline", journal=False) as session,
        pytest.raises(ParameterError, match="without a journal"),
    ):
        session.resume(entry.run)


def test_the_session_that_resumes_is_like_the_first(tmp_path: Path, journal: str):
    with hw.Session("inline", journal=journal) as session:
        session.run({"out": total(hw.range(10))}).close()
    (entry,) = list_runs(journal)
    assert session_like(entry.run, journal).address == "inline"
    assert session_like(entry.run, journal, "tcp://10.0.0.1:8786").address == "tcp://10.0.0.1:8786"
    with pytest.raises(SourceNotFoundError):
        session_like("nothing", journal)


def test_a_run_whose_driver_died_before_its_outputs_were_read_gives_them(tmp_path: Path, journal: str):
    with hw.Session("inline", journal=journal, scratch=tmp_path / "scratch") as session:
        outputs = {"out": total(hw.range(10)), "file": hw.range(4).write_parquet(str(tmp_path / "file"))}
        lost = session.run(outputs)
        (entry,) = list_runs(journal)
        lost._driver._channel.abandon()  # as if it had died: nothing is cleaned up
        lost._driver._lease.release()
        written = os.stat(tmp_path / "file").st_ino
        with session.resume(entry.run) as result:
            assert result.table("out")["n"].to_pylist() == [4, 3, 3]
            assert result.rows("file") == 4
            assert [stage.attempts for stage in result.report.stages] == [0] * len(result.report.stages)
        assert os.stat(tmp_path / "file").st_ino == written
