"""A process that is killed while it writes, or while it commits, leaves nothing half-visible."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from headwater.datasets import ParquetSink, parquet_source

pytestmark = pytest.mark.fault

SCHEMA = pa.schema([("x", pa.int64())])

WRITER = textwrap.dedent(
    """
    import os, signal, sys
    import pyarrow as pa
    from headwater.datasets import ParquetSink

    target, kill_at = sys.argv[1], sys.argv[2]
    schema = pa.schema([("x", pa.int64())])

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def rows():
        for start in range(0, 1_000_000, 100_000):
            yield pa.table({"x": range(start, start + 100_000)})
            if kill_at == "staging" and start == 500_000:
                die()

    sink = ParquetSink(target, if_exists=sys.argv[3])
    files = sink.stage("first", 0, 0, rows(), schema)
    if kill_at == "staged":
        die()
    rename = os.rename

    def renaming(source, destination):
        rename(source, destination)
        die()

    os.rename = renaming
    sink.commit("first", files)
    """
)


def killed(target: Path, kill_at: str, if_exists: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, target, kill_at, if_exists], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def rows(path: Path) -> list[int]:
    source = parquet_source(path)
    return [x for split in source.splits() for t in source.read(split, ["x"]) for x in t["x"].to_pylist()]


def write(target: Path, values: list[int], run: str, if_exists: str = "error") -> None:
    sink = ParquetSink(target, if_exists=if_exists)
    sink.check(SCHEMA)
    sink.commit(run, sink.stage(run, 0, 0, iter([pa.table({"x": values}, schema=SCHEMA)]), SCHEMA))


@pytest.mark.parametrize("kill_at", ["staging", "staged"])
def test_before_the_commit_nothing_is_visible_and_a_rerun_doubles_nothing(tmp_path: Path, kill_at: str):
    target = tmp_path / "out"
    killed(target, kill_at, "error")
    assert os.listdir(tmp_path) == [".out.staging-first"]
    write(target, [1, 2], "second")
    assert rows(target) == [1, 2]
    assert rows(tmp_path) == [1, 2]  # a reader of the folder above sees no staged file


def test_killed_right_after_the_rename_the_data_is_whole(tmp_path: Path):
    target = tmp_path / "out"
    killed(target, "commit", "error")
    assert rows(target) == list(range(1_000_000))


@pytest.mark.parametrize("kill_at", ["staging", "staged"])
def test_an_overwrite_that_dies_leaves_the_old_data(tmp_path: Path, kill_at: str):
    target = tmp_path / "out"
    write(target, [1, 2], "before")
    killed(target, kill_at, "overwrite")
    assert rows(target) == [1, 2]
    write(target, [3], "after", "overwrite")
    assert rows(target) == [3]


def test_an_overwrite_that_dies_between_its_renames_is_put_back_or_finished(tmp_path: Path):
    target = tmp_path / "out"
    write(target, [1, 2], "before")
    killed(target, "commit", "overwrite")
    assert not target.exists()
    ParquetSink(target, if_exists="overwrite").abort("first")
    assert rows(target) == [1, 2]
    assert os.listdir(tmp_path) == ["out"]
