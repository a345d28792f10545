"""Quantiles of any numbers, cut and merged in any way: the bytes of the whole, and answers within their accuracy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headwater.ops.aggregations import AGGREGATIONS
from headwater.ops.grouping import Groups

RECORD = AGGREGATIONS["approx_quantile"]
GROUPS = 3


def state_of(rows, type, options):
    column = pa.array([value for _, value in rows], type, from_pandas=False)
    codes = np.array([group for group, _ in rows], dtype=np.int64)
    return RECORD.partial(Groups(codes, GROUPS), column, options)


def merged(states):
    parts = tuple(pa.concat_arrays(columns) for columns in zip(*states))
    return RECORD.merge(Groups(np.tile(np.arange(GROUPS), len(states)), GROUPS), parts)


@st.composite
def columns(draw):
    type, values = draw(
        st.sampled_from(
            [
                (pa.float64(), st.floats()),
                (pa.float32(), st.floats(width=32)),
                (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
                (pa.uint64(), st.integers(0, 2**64 - 1)),
                (pa.int16(), st.integers(-300, 300)),
            ]
        )
    )
    return type, draw(st.lists(st.tuples(st.integers(0, GROUPS - 1), st.none() | values), max_size=60))


@given(
    columns(),
    st.lists(st.integers(0, 60), max_size=4),
    st.randoms(use_true_random=False),
    st.floats(0, 1),
    st.floats(1e-5, 0.25),
)
def test_any_cut_and_any_order_of_merging(column, cuts, random, q, accuracy):
    type, rows = column
    options = {"accuracy": accuracy, "q": q}
    whole = state_of(rows, type, options)
    shuffled = list(rows)
    random.shuffle(shuffled)
    bounds = [0, *sorted(cuts), len(rows)]
    states = [state_of(shuffled[start:stop], type, options) for start, stop in zip(bounds, bounds[1:])]
    while len(states) > 1:
        random.shuffle(states)
        states = [merged(states[:2]), *states[2:]]
    assert all(repr(one.to_pylist()) == repr(other.to_pylist()) for one, other in zip(states[0], whole))
    answers = RECORD.finish(whole, options)
    for group in range(GROUPS):
        values = sorted(
            (value for owner, value in rows if owner == group and value is not None),
            key=lambda value: (value != value, value),
        )
        answer = answers[group].as_py()
        if not values:
            assert answer is None
            continue
        wanted = values[int(np.floor(q * (len(values) - 1)))]
        if wanted != wanted or wanted in (np.inf, -np.inf):
            assert repr(answer) == repr(wanted)
        else:
            assert abs(answer - wanted) <= accuracy * (abs(wanted) + 2.3e-308) + (2**-52) * abs(wanted)
