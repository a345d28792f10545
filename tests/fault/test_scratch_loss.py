"""A node's scratch folder is emptied while tasks run: what they were writing is written again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

import headwater as hw
from headwater.errors import UserFunctionError

pytestmark = pytest.mark.fault


@dataclass
class EmptiesOnce:
    """A user function that deletes a folder the first time it meets row 500."""

    folder: str
    done: str

    def __call__(self, batch):
        if 500 in batch["id"] and not Path(self.done).exists():
            Path(self.done).touch()
            shutil.rmtree(self.folder)
        return batch


def test_scratch_emptied_under_a_running_task(tmp_path: Path):
    scratch = tmp_path / "scratch"
    empties = EmptiesOnce(str(scratch), str(tmp_path / "done"))
    rows = hw.range(1000, partitions=8).map_batches(empties, schema=pa.schema([("id", pa.int64())]))
    spread = rows.with_columns(key=hw.col("id") % 7).group_by("key").agg(total=hw.sum("id")).sort("key")
    with hw.Session("inline", scratch=scratch) as session:
        assert spread.compute(session)["total"].to_pylist() == [sum(range(k, 1000, 7)) for k in range(7)]
    assert (tmp_path / "done").exists()


def test_a_user_file_that_is_missing_is_not_taken_for_it(tmp_path: Path):
    def opens(batch):
        return open(tmp_path / "nothing").read()

    rows = hw.range(10).map_batches(opens, schema=pa.schema([("id", pa.int64())]))
    with hw.Session("inline", scratch=tmp_path) as session, pytest.raises(UserFunctionError):
        rows.compute(session)
