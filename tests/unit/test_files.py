"""Paths, folders and globs become the right files in the right order, and missing ones a clear error."""

from __future__ import annotations

import datetime
import os
import pickle
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from headwater.datasets.files import find_files
from headwater.errors import CorruptFileError, ParameterError, SchemaMismatchError, SourceNotFoundError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def found(root: Path, pattern: str = "") -> list[str]:
    files = find_files(str(root / pattern) if pattern else root).files
    return [os.path.relpath(file.path, root) for file in files]


def test_a_folder_is_searched_below_in_natural_order_without_hidden_names(tmp_path: Path):
    touch(
        tmp_path, "part-10.csv", "part-9.csv", "b/part-1.csv", "_SUCCESS", ".crc", "_tmp/x.csv", ".git/x.csv"
    )
    assert found(tmp_path) == ["b/part-1.csv", "part-9.csv", "part-10.csv"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a.csv", "c.csv"]),
        ("**/*.csv", ["a.csv", "c.csv", "d/e/f.csv"]),
        ("[ab].*", ["a.csv", "b.txt"]),
        ("d*", ["d/e/f.csv"]),
        ("?.txt", ["b.txt"]),
        ("_*.csv", ["_h.csv"]),
    ],
)
def test_globs_follow_pathlib_and_take_folders_whole(tmp_path: Path, pattern: str, expected: list[str]):
    touch(tmp_path, "a.csv", "b.txt", "c.csv", "d/e/f.csv", "_h.csv")
    assert sorted(found(tmp_path, pattern)) == expected


def test_a_name_with_glob_characters_is_taken_as_it_is_if_it_exists(tmp_path: Path):
    touch(tmp_path, "a[1].csv", "a1.csv")
    assert found(tmp_path, "a[1].csv") == ["a[1].csv"]


def test_a_list_keeps_its_order_and_no_file_comes_twice(tmp_path: Path):
    touch(tmp_path, "a.csv", "b.csv")
    files = find_files([tmp_path / "b.csv", str(tmp_path / "*.csv")]).files
    assert [os.path.basename(file.path) for file in files] == ["b.csv", "a.csv"]


def test_linked_files_and_folders_are_followed(tmp_path: Path):
    touch(tmp_path, "real/x.csv", "elsewhere/y.csv")
    (tmp_path / "real/y.csv").symlink_to(tmp_path / "elsewhere/y.csv")
    (tmp_path / "real/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real/loop").symlink_to(tmp_path / "real")
    files = find_files(tmp_path / "real")
    assert [os.path.relpath(f.path, tmp_path / "real") for f in files.files] == [
        "more/y.csv",
        "x.csv",
        "y.csv",
    ]
    for file in files.files:
        with files.open(file) as opened:
            assert opened.read().endswith(os.path.basename(file.path).encode())


def test_hive_folders_give_typed_columns(tmp_path: Path):
    null = "__HIVE_DEFAULT_PARTITION__"
    touch(
        tmp_path,
        "y=2024/d=2024-01-31/c=New%20York/x",
        f"y=2023/d={null}/c=%2F/x",
        f"y={null}/d=2024-02-29/c=/x",
    )
    files = find_files(tmp_path)
    assert files.hive_schema == pa.schema([("y", pa.int64()), ("d", pa.date32()), ("c", pa.string())])
    assert {file.values for file in files.files} == {
        (2024, datetime.date(2024, 1, 31), "New York"),
        (2023, None, "/"),
        (None, datetime.date(2024, 2, 29), ""),
    }


@pytest.mark.parametrize(
    ("values", "type"),
    [
        (["01", "12"], pa.int64()),
        (["1", "1.5"], pa.string()),
        (["2024-01-01", "2024-13-01"], pa.string()),
        (["9" * 30], pa.string()),
        ([str(2**63 - 1), str(-(2**63))], pa.int64()),
        ([str(2**63)], pa.string()),
    ],
)
def test_hive_types_hold_every_value(tmp_path: Path, values: list[str], type: pa.DataType):
    touch(tmp_path, *(f"k={value}/x" for value in values))
    assert find_files(tmp_path).hive_schema.field("k").type == type


def test_files_below_different_keys_are_refused(tmp_path: Path):
    touch(tmp_path, "a=1/x", "b=1/x")
    with pytest.raises(SchemaMismatchError, match=r"b=1.*a=1.*hive=False"):
        find_files(tmp_path)
    assert len(find_files(tmp_path, hive=False).files) == 2


def test_a_missing_file_names_near_ones(tmp_path: Path):
    touch(tmp_path, "rides.csv")
    with pytest.raises(SourceNotFoundError, match=r"rids\.csv doesn't exist.*Did you mean 'rides\.csv'"):
        find_files(tmp_path / "rids.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        find_files(tmp_path / "nowhere/rides.csv")


def test_a_glob_without_matches_says_what_is_there(tmp_path: Path):
    touch(tmp_path, "a.csv")
    with pytest.raises(SourceNotFoundError, match=r"\*\.parquet matches no file.*holds 'a\.csv'"):
        find_files(tmp_path / "*.parquet")
    with pytest.raises(SourceNotFoundError, match=r"There is no folder .*no"):
        find_files(tmp_path / "no/*.parquet")


def test_a_folder_without_files_to_read_is_an_error(tmp_path: Path):
    touch(tmp_path, "_SUCCESS")
    with pytest.raises(SourceNotFoundError, match=r"no files to read.*'_SUCCESS'"):
        find_files(tmp_path)


def test_several_file_systems_at_once_are_refused(tmp_path: Path):
    touch(tmp_path, "a")
    with pytest.raises(ParameterError, match="several file systems"):
        find_files([tmp_path / "a", "memory://a"])
    with pytest.raises(ParameterError, match="empty"):
        find_files([])


def test_any_fsspec_url_works():
    fs = fsspec.filesystem("memory")
    fs.pipe({"/data-of-test-files/k=1/a.csv": b"x", "/data-of-test-files/k=2/b.csv": b"yy"})
    files = find_files("memory://data-of-test-files/**/*.csv")
    assert [(file.size, file.values) for file in files.files] == [(1, (1,)), (2, (2,))]
    with files.open(files.files[1]) as file:
        assert file.read() == b"yy"
    with pytest.raises(SourceNotFoundError, match=r"Did you mean 'data-of-test-files'"):
        find_files("memory://data-of-test-file")


def test_the_digest_changes_with_content_but_not_with_the_process(tmp_path: Path):
    touch(tmp_path, "a", "b")
    first = find_files(tmp_path)
    assert find_files(tmp_path).digest == first.digest
    os.utime(tmp_path / "b", ns=(1, 1))
    assert find_files(tmp_path).digest != first.digest


def test_a_pickled_set_lists_again_and_refuses_changed_files(tmp_path: Path):
    touch(tmp_path, *(f"{i:04d}-{'x' * 50}" for i in range(200)))
    files = find_files(tmp_path)
    data = pickle.dumps(files)
    assert len(data) < 2000
    assert pickle.loads(data).files == files.files
    touch(tmp_path, "new")
    with pytest.raises(CorruptFileError, match="changed since the plan"):
        _ = pickle.loads(data).files


def test_a_file_that_changes_after_planning_is_not_read(tmp_path: Path):
    touch(tmp_path, "a", "b")
    files = find_files(tmp_path)
    (tmp_path / "a").write_text("longer than before")
    (tmp_path / "b").unlink()
    with pytest.raises(CorruptFileError, match=r"a changed since the plan was made \(1 bytes then, 18 now\)"):
        files.open(files.files[0])
    with pytest.raises(SourceNotFoundError, match="b is gone"):
        files.open(files.files[1])
