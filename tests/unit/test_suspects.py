"""What a function's code names that can make its result differ, and how two results are told apart."""

from __future__ import annotations

import datetime
import functools
import random
import time
from time import time as now

import numpy as np
import pyarrow as pa
import pytest

from headwater.lineage.suspects import Trap, find_suspects, location
from headwater.runtime.check_inputs import spread
from headwater.runtime.check_report import Difference, compare, rank

COUNTS = {"calls": 0}


def helper():
    return random.random()


def through_a_helper(batch):
    return helper()


def renamed(batch):
    return now()


def imports_inside(batch):
    import os.path

    from numpy.random import rand  # fmt: skip
    from numpy.random import randint as draw

    return rand(3), draw(3), os.path.join("a", "b"), os.getpid()


def nested(batch):
    def inner():
        return [datetime.datetime.now() for _ in batch]

    return inner()


def counts(batch):
    COUNTS["calls"] += 1
    return COUNTS["calls"]


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        return self.calls


def clean(batch):
    names = sorted(batch, key=lambda name: (name in {"a", "b"}, name))
    return np.random.default_rng(7).random(), time.strptime("1", "%S"), dict.fromkeys(names)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (through_a_helper, {"random.random"}),
        (renamed, {"time.time"}),
        (imports_inside, {"numpy.random.rand", "numpy.random.randint", "os.getpid"}),
        (nested, {"datetime.datetime.now"}),
        (counts, {"COUNTS[...] ="}),
        (Counter(), {"the attribute 'calls'"}),
        (functools.partial(renamed), {"time.time"}),
        (Counter().__call__, {"the attribute 'calls'"}),
        (clean, set()),
        (np.sort, set()),
    ],
)
def test_suspects_are_named_however_they_are_reached(function, names):
    assert {suspect.name for suspect in find_suspects(function)} == names


def test_a_suspect_knows_its_line():
    (suspect,) = find_suspects(through_a_helper)
    assert suspect.where == f"{__file__}:{helper.__code__.co_firstlineno + 1}"
    assert suspect.trap is Trap.RANDOM


def test_a_callable_object_is_located_at_its_call():
    assert location(Counter()) == f"{__file__}:{Counter.__call__.__code__.co_firstlineno}"


def test_the_suspect_that_fits_the_evidence_comes_first():
    def both(batch):
        return time.time(), set(batch)

    suspects = find_suspects(both)
    traps = [rank(suspects, Difference(0, 0, within_process=within))[0].trap for within in (True, False)]
    assert traps == [Trap.TIME, Trap.SET_ORDER]


def test_tables_are_compared_bit_by_bit():
    nan, null = pa.table({"x": pa.array([1.0, float("nan")])}), pa.table({"x": pa.array([1.0, None])})
    assert compare(nan, nan, 0, False) is None
    assert compare(nan, null, 0, False).columns == (("x", "nan", "None"),)
    assert compare(nan, pa.table({"x": [1.0]}), 3, False).columns == (("x", "nan", "(no row)"),)


def test_the_first_row_and_all_its_differing_columns_are_told():
    one = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"], "c": [0, 0, 0]})
    other = pa.table({"a": [1, 3, 2], "b": ["x", "z", "y"], "c": [0, 0, 0]})
    difference = compare(one, other, 5, True)
    assert (difference.partition, difference.row) == (5, 1)
    assert difference.columns == (("a", "2", "3"), ("b", "'y'", "'z'"))
    assert difference.reordered


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_sampled_partitions_hold_both_ends(most: int):
    for count in (1, 2, 3, 100):
        chosen = spread(count, most)
        assert len(chosen) == min(count, most)
        assert chosen[0] == 0
        assert most == 1 or chosen[-1] == count - 1
