"""Bad input gives a clear early error: what arrived, what was likely meant, what to write instead."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headwater as hw
from headwater import col, errors


@pytest.fixture(scope="module")
def session():
    with hw.Session("inline") as session:
        yield session


@pytest.fixture
def rides() -> hw.Dataset:
    return hw.from_arrow({"fare": [3.0, 5.0], "zone": ["a", "b"], "n": [1, 2]}, partitions=2)


@pytest.mark.parametrize(
    "use",
    [
        lambda d: d.filter(col("fair") > 0),
        lambda d: d.select("fair"),
        lambda d: d.with_columns(x=col("fair") * 2),
        lambda d: d.drop("fair"),
        lambda d: d.rename(fair="x"),
        lambda d: d.sort("fair"),
        lambda d: d.group_by("fair"),
        lambda d: d.agg(col("fair").sum()),
        lambda d: d.distinct("fair"),
        lambda d: d.join(d, on="fair"),
        lambda d: d.split(0.5, 0.5, by="fair"),
        lambda d: d.repartition(2, by="fair"),
        lambda d: d.drop_nulls("fair"),
        lambda d: d.fill_null({"fair": 0}),
        lambda d: d.write_parquet("/nowhere/out", partition_by="fair"),
    ],
)
def test_an_unknown_column_is_named_with_near_matches_where_it_is_declared(rides, use):
    with pytest.raises(errors.ColumnNotFoundError, match=r"no column 'fair'.*Did you mean 'fare'\?.*'zone'"):
        use(rides)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda d: d.filter(col("zone") + 1 > 0), r"zone.*string.*int64"),
        (lambda d: d.filter(col("fare")), r"needs a boolean.*double"),
        (lambda d: d.agg(col("zone").mean()), r"mean.*string"),
        (lambda d: d.join(d, left_on="zone", right_on="n"), r"'zone' is string.*'n' is int64"),
        (lambda d: d.filter("fare > 0"), r"takes expressions, not str"),
        (lambda d: d.filter(col("fare") > 0 and col("n") > 0), r"Write & for and"),
        (lambda d: d.select(hw.sum("fare")), r"stands only inside agg"),
    ],
)
def test_a_type_mismatch_is_named_where_it_is_declared(rides, use, message):
    with pytest.raises(errors.TypeMismatchError, match=message):
        use(rides)


def test_a_missing_file_names_what_is_beside_it(tmp_path: Path):
    (tmp_path / "rides.csv").write_text("a\n1\n")
    with pytest.raises(errors.SourceNotFoundError, match=r"rids\.csv.*rides\.csv"):
        hw.read_csv(str(tmp_path / "rids.csv"))


def test_an_empty_glob_says_that_nothing_matches(tmp_path: Path):
    with pytest.raises(errors.SourceNotFoundError, match=r"\*\.parquet"):
        hw.read_parquet(str(tmp_path / "*.parquet"))


@pytest.mark.parametrize("use", [hw.read_csv, lambda url: hw.range(3).write_parquet(url)])
def test_an_unknown_protocol_names_the_known_ones(use):
    with pytest.raises(errors.ParameterError, match=r"memry://rides/1\.csv.*Did you mean 'memory'"):
        use("memry://rides/1.csv")


def test_schemas_that_differ_between_files_name_file_and_column(tmp_path: Path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["1"], "b": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(errors.SchemaMismatchError, match=r"2\.parquet.*'a'"):
        hw.read_parquet(str(tmp_path))


def test_a_corrupt_parquet_file_is_named(tmp_path: Path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is not parquet PAR1")
    with pytest.raises(errors.CorruptFileError, match=r"bad\.parquet"):
        hw.read_parquet(str(tmp_path / "bad.parquet"))


def test_a_parquet_file_with_a_broken_page_fails_the_run_with_its_name(tmp_path: Path, session):
    path = tmp_path / "torn.parquet"
    pq.write_table(pa.table({"a": np.arange(100_000)}), path, compression="zstd")
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(b"\xff" * 400)
    with pytest.raises(errors.CorruptFileError, match=r"torn\.parquet"):
        hw.read_parquet(str(path)).compute(session)


def test_a_bad_csv_line_stops_the_run_or_is_skipped_by_policy(tmp_path: Path, session):
    path = tmp_path / "r.csv"
    path.write_text("a,b\n1,x\n2\n3,z\n")
    with pytest.raises(errors.BadRecordError, match=r"r\.csv"):
        hw.read_csv(str(path)).compute(session)
    kept = hw.read_csv(str(path), on_bad_line="skip").compute(session)
    assert kept.to_pydict() == {"a": [1, 3], "b": ["x", "z"]}


def test_a_user_function_that_raises_gives_its_traceback_operator_partition_and_a_row(session):
    def broken(batch):
        if len(batch["id"]):
            raise KeyError("boom")
        return batch

    with pytest.raises(errors.UserFunctionError) as caught:
        hw.range(10, partitions=2).map_batches(broken).compute(session)
    text = str(caught.value)
    assert "KeyError: 'boom'" in text
    assert "in broken" in text
    assert "partition" in text
    assert "{'id': 0" in text or "{'id': 5" in text


def test_a_user_function_that_returns_the_wrong_length_is_named(session):
    def short(batch):
        return {"id": batch["id"][:-1]}

    with pytest.raises(errors.UserFunctionError, match=r"short.*length|short.*rows"):
        hw.range(10).map_batches(short, schema={"id": pa.int64()}, same_length=True).compute(session)


def test_a_user_function_that_returns_the_wrong_type_is_named(session):
    def text(batch):
        return {"id": np.array(["x"] * len(batch["id"]))}

    with pytest.raises(errors.UserFunctionError, match=r"text.*'id'.*int64"):
        hw.range(10).map_batches(text, schema={"id": pa.int64()}).compute(session)


def test_a_function_that_cannot_be_pickled_fails_where_it_is_declared_and_names_the_culprit():
    lock = threading.Lock()

    def locked(batch):
        with lock:
            return batch

    with pytest.raises(errors.SerializationError, match=r"locked.*lock"):
        hw.range(10).map_batches(locked)


def test_a_sink_that_exists_is_refused_before_anything_runs(tmp_path: Path, session):
    target = tmp_path / "out"
    hw.range(3).write_parquet(str(target)).run(session).close()
    with pytest.raises(errors.SinkExistsError, match=r"out.*overwrite"):
        hw.range(3).write_parquet(str(target))


@pytest.mark.fault
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_visible(tmp_path: Path, session):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        noise = hw.range(400_000).with_columns(x=hw.hash_unit(col("id")))
        with pytest.raises(errors.DiskFullError, match=r"disk"):
            noise.write_parquet(str(disk / "out")).compute(session)
        assert not (disk / "out").exists()
        assert [p for p in disk.rglob("*") if p.is_file()] == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.fault
def test_a_full_scratch_quota_is_a_clear_error(tmp_path: Path):
    with (
        hw.Session("inline", quota=100_000) as session,
        pytest.raises(errors.DiskFullError, match=r"quota"),
    ):
        hw.range(400_000).sort("id", descending=True).compute(session)
