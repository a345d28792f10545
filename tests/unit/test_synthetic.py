"""Ranges and synthetic rides: the same rows however they are cut."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headwater.datasets import range_source, rides_source, zones_table
from headwater.errors import ParameterError


def read(source, columns=None) -> pa.Table:
    columns = source.schema.names if columns is None else columns
    worker = pickle.loads(pickle.dumps(source))
    schema = pa.schema([source.schema.field(name) for name in columns])
    tables = [table for split in source.splits() for table in worker.read(split, columns)]
    return pa.concat_tables([schema.empty_table(), *tables])


@pytest.mark.parametrize(
    "numbers", [range(10), range(3, 50, 7), range(10, -10, -3), range(5, 5), range(300_000)]
)
@pytest.mark.parametrize("partitions", [None, 1, 4])
def test_a_range_is_pythons(numbers: range, partitions: int | None):
    source = range_source(numbers.start, numbers.stop, numbers.step, partitions=partitions)
    assert read(source)["id"].to_pylist() == list(numbers)
    assert sum(split.rows for split in source.splits()) == len(numbers)
    assert sum(t.num_rows for s in source.splits() for t in source.read(s, [])) == len(numbers)


def test_a_range_at_the_ends_of_int64():
    top = 2**63 - 1
    assert read(range_source(top - 2, top))["id"].to_pylist() == [top - 2, top - 1]
    assert read(range_source(-top - 1, top, 2**62))["id"].to_pylist() == list(range(-top - 1, top, 2**62))
    with pytest.raises(ParameterError, match="fits int64"):
        range_source(2**63)
    with pytest.raises(ParameterError, match="step must not be 0"):
        range_source(0, 1, 0)


def test_a_limit_on_a_range():
    (split,) = range_source(100).splits()
    assert sum(t.num_rows for t in range_source(100).read(split, ["id"], limit=3)) == 3


def test_rides_do_not_depend_on_partitions():
    whole = read(rides_source(150_000, seed=3))
    for partitions in (2, 7):
        assert read(rides_source(150_000, seed=3, partitions=partitions)).equals(whole)
    assert read(rides_source(70_000, seed=3)).equals(whole.slice(0, 70_000))
    assert not read(rides_source(150_000, seed=4)).equals(whole)


def test_rides_are_like_rides():
    rides = read(rides_source(200_000))
    zones = zones_table()
    assert rides["ride_id"].to_pylist() == list(range(200_000))
    counts = np.sort(np.bincount(rides["zone_id"].to_numpy(), minlength=266)[1:])[::-1]
    assert counts[0] > 5 * counts[9] > 5 * counts[99] > 0  # Zipf: the tenth has a twelfth of the first
    assert set(rides["zone_id"].unique().to_pylist()) <= set(zones["zone_id"].to_pylist())
    assert 0.005 < rides["fare"].null_count / 200_000 < 0.015
    assert 0.003 < pc.sum(pc.less(rides["fare"], 0)).as_py() / 200_000 < 0.007
    assert 0.2 < pc.mean(rides["tipped"].cast(pa.int8())).as_py() < 0.5
    untipped = rides.filter(pc.invert(rides["tipped"]))
    assert pc.max(untipped["tip"]).as_py() == 0
    assert set(pc.unique(pc.year(rides["pickup"])).to_pylist()) == {2024}


def test_zones_are_distinct():
    zones = zones_table()
    assert (
        zones.num_rows == len(set(zones["zone_id"].to_pylist())) == len(set(zones["zone"].to_pylist())) == 265
    )


def test_rides_options_are_checked():
    with pytest.raises(ParameterError, match="rows must be a positive integer"):
        rides_source(0)
