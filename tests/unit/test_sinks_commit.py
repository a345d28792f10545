"""A commit makes exactly the named files visible, at once, however often it is cut off and repeated."""

from __future__ import annotations

import errno
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headwater as hw
from headwater.datasets import ParquetSink, parquet_source
from headwater.errors import DiskFullError, ParameterError, RunFailedError, SinkExistsError
from headwater.ops.sink import StagedFile

SCHEMA = pa.schema([("x", pa.int64())])


def stage(sink: ParquetSink, *parts: list[int], run: str = "run", attempt: int = 0) -> list[StagedFile]:
    return [
        file
        for index, values in enumerate(parts)
        for file in sink.stage(run, index, attempt, iter([pa.table({"x": values}, schema=SCHEMA)]), SCHEMA)
    ]


def rows(path) -> list[int]:
    source = parquet_source(str(path))
    return [x for split in source.splits() for t in source.read(split, ["x"]) for x in t["x"].to_pylist()]


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path: Path):
    """Where to write: a local disk, committed by rename, and an object store, committed file by file."""
    if request.param == "local":
        yield str(tmp_path)
    else:
        yield f"memory://{tmp_path}"
        fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["out", "out.parquet"])
def target(request, root: str) -> str:
    return f"{root}/{request.param}"


def parts_of(target: str) -> list[list[int]]:
    return [[1, 2, 3]] if target.endswith(".parquet") else [[1], [2, 3]]


def left_over(target: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(target)
    parent = path.rpartition("/")[0]
    return sorted(name.rpartition("/")[2].strip("/") for name in fs.ls(parent, detail=False))


def test_nothing_is_visible_before_the_commit_and_no_staging_after_it(target: str):
    sink = ParquetSink(target)
    files = stage(sink, *parts_of(target))
    fs, path = fsspec.core.url_to_fs(target)
    assert not fs.exists(path)
    sink.commit("run", files)
    assert rows(target) == [1, 2, 3]
    assert left_over(target) == [os.path.basename(target)]


def test_a_commit_again_changes_nothing(target: str):
    sink = ParquetSink(target)
    files = stage(sink, *parts_of(target))
    for _ in range(3):
        sink.commit("run", files)
        assert rows(target) == [1, 2, 3]


def test_only_the_named_attempt_becomes_visible(target: str):
    sink = ParquetSink(target)
    stage(sink, *[[v + 100 for v in part] for part in parts_of(target)], attempt=1)
    files = stage(sink, *parts_of(target), attempt=2)
    stage(sink, *[[v + 200 for v in part] for part in parts_of(target)], attempt=3)
    sink.commit("run", files)
    assert rows(target) == [1, 2, 3]
    assert left_over(target) == [os.path.basename(target)]


def test_abort_removes_what_was_staged_and_leaves_the_rest(target: str):
    sink = ParquetSink(target)
    stage(sink, [1])
    stage(sink, [2], run="other")
    sink.abort("run")
    sink.abort("run")
    assert left_over(target) == [f".{os.path.basename(target)}.staging-other"]


def test_what_exists_is_refused_or_replaced(target: str):
    sink = ParquetSink(target)
    sink.commit("run", stage(sink, *parts_of(target)))
    with pytest.raises(SinkExistsError, match=rf'{os.path.basename(target)} .*if_exists="overwrite"'):
        ParquetSink(target).check(SCHEMA)
    again = ParquetSink(target, if_exists="overwrite")
    again.check(SCHEMA)
    files = stage(again, [7], run="two")
    assert rows(target) == [1, 2, 3]
    again.commit("two", files)
    assert rows(target) == [7]
    again.commit("two", files)
    assert rows(target) == [7]
    assert left_over(target) == [os.path.basename(target)]


def test_what_appears_during_the_run_is_not_overwritten(target: str):
    sink, other = ParquetSink(target), ParquetSink(target)
    sink.check(SCHEMA)
    files = stage(sink, *parts_of(target))
    other.commit("other", stage(other, [9], run="other"))
    with pytest.raises(SinkExistsError):
        sink.commit("run", files)
    assert rows(target) == [9]


class Crash(BaseException):
    """Stands for the process's death."""


STEPS = [
    "os.link", "os.rename", "os.replace", "os.makedirs", "os.fsync", "shutil.rmtree", "pathlib.Path.write_bytes",
    "fsspec.implementations.memory.MemoryFileSystem.cp_file",
    "fsspec.implementations.memory.MemoryFileSystem.rm_file",
    "fsspec.implementations.memory.MemoryFileSystem.rm",
    "fsspec.implementations.memory.MemoryFileSystem.pipe_file",
]  # fmt: skip


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_step_and_another_commit_give_the_same(
    target: str, overwrite: bool, after: bool, monkeypatch
):
    if overwrite:
        old = ParquetSink(target)
        old.commit("old", stage(old, *([[5]] if target.endswith(".parquet") else [[4], [5], [6]]), run="old"))
    before = rows(target) if overwrite else None
    sink = ParquetSink(target, if_exists="overwrite" if overwrite else "error")
    files = stage(sink, *parts_of(target))
    crashes = 0
    while True:
        left = [crashes]
        with monkeypatch.context() as patch:
            for step in STEPS:
                patch_step(patch, step, left, after)
            try:
                sink.commit("run", files)
                break
            except Crash:
                crashes += 1
        if "memory" not in target:  # there, a reader sees all of the old, all of the new, or nothing
            assert seen(target) in (before, [1, 2, 3], None)
    assert crashes
    assert rows(target) == [1, 2, 3]
    assert left_over(target) == [os.path.basename(target)]
    sink.commit("run", files)
    assert rows(target) == [1, 2, 3]


def patch_step(patch: pytest.MonkeyPatch, step: str, left: list[int], after: bool) -> None:
    owner, name = (
        pkgutil.resolve_name(step.rpartition(".")[0]),
        step.rpartition(".")[2],
    )
    original = getattr(owner, name)

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0 and not after:
            raise Crash
        result = original(*args, **kwargs)
        if left[0] < 0:
            raise Crash
        return result

    patch.setattr(owner, name, dying)


def seen(target: str) -> list[int] | None:
    return rows(target) if os.path.exists(target) else None


def test_an_overwrite_cut_off_between_its_renames_is_undone_by_abort(tmp_path: Path, monkeypatch):
    first = ParquetSink(tmp_path / "out")
    first.commit("one", stage(first, [1], run="one"))
    sink = ParquetSink(tmp_path / "out", if_exists="overwrite")
    files = stage(sink, [2])
    rename = os.rename

    def once(source, target):
        monkeypatch.setattr(os, "rename", fail)
        rename(source, target)

    def fail(source, target):
        raise Crash

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(Crash):
        sink.commit("run", files)
    monkeypatch.setattr(os, "rename", rename)
    assert not (tmp_path / "out").exists()
    sink.abort("run")
    assert rows(tmp_path / "out") == [1]
    assert everything(tmp_path) == ["out", "out/_SUCCESS", "out/part-00000.parquet"]


def test_a_staged_file_that_is_gone_stops_the_commit(target: str):
    sink = ParquetSink(target)
    files = stage(sink, *parts_of(target))
    fs, _ = fsspec.core.url_to_fs(target)
    fs.rm_file(f"{sink.destination.staging('run')}/{files[-1].path}")
    with pytest.raises(RunFailedError, match="is gone"):
        sink.commit("run", files)
    assert not (os.path.exists(target))


def test_a_failing_task_leaves_no_files(tmp_path: Path):
    def broken():
        yield pa.table({"x": [1]})
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        ParquetSink(tmp_path / "out").stage("run", 0, 0, broken(), SCHEMA)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_folder_above_home_or_the_working_folder_is_never_overwritten(tmp_path: Path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work" / "thesis.tex").write_text("years")
    for path in (tmp_path, tmp_path / "work", Path("/")):
        with pytest.raises(ParameterError, match=r"holds the working folder|Name another"):
            ParquetSink(path, if_exists="overwrite").check(SCHEMA)
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years"


def test_an_empty_folder_may_be_written_to_and_a_link_is_followed(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    sink = ParquetSink(tmp_path / "link")
    sink.check(SCHEMA)
    sink.commit("run", stage(sink, [1]))
    assert (tmp_path / "link").is_symlink()
    assert rows(tmp_path / "real") == [1]


def test_a_folder_stands_where_a_file_is_to_be(tmp_path: Path):
    (tmp_path / "out.parquet").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "out.parquet" / "part-0.parquet")
    with pytest.raises(SinkExistsError):
        ParquetSink(tmp_path / "out.parquet").check(SCHEMA)
    sink = ParquetSink(tmp_path / "out.parquet", if_exists="overwrite")
    sink.commit("run", stage(sink, [2]))
    assert rows(tmp_path / "out.parquet") == [2]
    assert everything(tmp_path) == ["out.parquet"]


def test_without_hard_links_files_are_copied(target: str, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    sink = ParquetSink(target)
    sink.commit("run", stage(sink, *parts_of(target)))
    assert rows(target) == [1, 2, 3]


def test_no_space_left_is_a_disk_full_error(tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = ParquetSink(tmp_path / "out")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"out: the disk is full.*free some space"):
        stage(sink, [1])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.fixture
def small_disk(tmp_path: Path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", [".", "out", "out.parquet"])
@pytest.mark.parametrize("big", [False, True])
def test_a_small_disk_for_real(small_disk: Path, name: str, big: bool):
    sink = ParquetSink(small_disk / name)
    sink.check(SCHEMA)
    table = pa.table(
        {"x": [i * i * 0x9E3779B97F4A7C15 >> 2 & (1 << 62) - 1 for i in range(400_000 if big else 10)]}
    )
    if big:
        with pytest.raises(DiskFullError, match="disk"):
            sink.stage("run", 0, 0, iter([table]), SCHEMA)
        assert [p for p in small_disk.rglob("*") if p.is_file()] == []
    else:
        sink.commit("run", sink.stage("run", 0, 0, iter([table]), SCHEMA))
        assert rows(small_disk / name) == table["x"].to_pylist()


def test_outputs_of_a_run_that_share_a_place_are_refused(tmp_path: Path):
    one, other = hw.range(3), hw.range(5)
    with pytest.raises(ParameterError, match="outputs 'a' and 'b' are written to one place"):
        hw.Session("inline").run(
            {"a": one.write_csv(str(tmp_path / "out")), "b": other.write_csv(str(tmp_path / "out"))}
        )
    with pytest.raises(ParameterError, match="written to one place"):
        hw.Session("inline").run(
            {"a": one.write_csv(str(tmp_path / "out")), "b": other.write_parquet(str(tmp_path / "out/below"))}
        )
    assert everything(tmp_path) == []
    same = one.write_csv(str(tmp_path / "out"))
    apart = other.write_csv(str(tmp_path / "out2"))
    hw.Session("inline").run({"a": same, "again": same, "b": apart})
