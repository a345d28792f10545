"""Histograms against NumPy's: few and many bins, even and uneven edges, nulls, NaN, values at the edges."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from headwater.errors import ParameterError
from headwater.ops.backend import to_host
from headwater.ops.device.arrays.histogram import histogram


def edges(kind: str, bins: int) -> np.ndarray:
    even = np.linspace(-3, 3, bins + 1)
    if kind == "even":
        return even
    return np.sort(np.random.default_rng(bins).normal(size=bins + 1))


CASES = [("float64", *case) for case in (("even", 1), ("even", 256), ("uneven", 1000), ("even", 3000))]
CASES += [(dtype, "uneven", 40) for dtype in ("float64", "float32", "int64", "int32", "uint8", "bool")]


@pytest.mark.parametrize(("dtype", "kind", "bins"), CASES)
def test_counts_are_numpys(xp: ModuleType, dtype: str, kind: str, bins: int) -> None:
    random = np.random.default_rng(bins)
    limits = edges(kind, bins)
    for rows in (0, 1, 2_003):
        values = (random.normal(size=rows) * 2).astype(dtype)
        if rows > 1 and values.dtype.kind == "f":
            values[::7] = random.choice(limits, len(values[::7]))
            values[::11] = np.nan
            values[:4] = [np.inf, -np.inf, -0.0, limits[-1]]
        valid = random.random(rows) < 0.8
        for mask in (None, valid, np.zeros(rows, bool)):
            plain = values if mask is None else values[mask]
            wanted, _ = np.histogram(plain[~np.isnan(plain)].astype(np.float64), limits)
            assert histogram(values, mask, limits, np).tolist() == wanted.tolist()
            found = histogram(xp.asarray(values), None if mask is None else xp.asarray(mask), limits, xp)
            assert found.dtype == np.int64
            assert to_host(found).tolist() == wanted.tolist()


def test_counts_of_parts_add_up(xp: ModuleType) -> None:
    values = xp.asarray(np.random.default_rng(1).normal(size=2_000))
    limits = edges("even", 64)
    parts = histogram(values[:1_234], None, limits, xp) + histogram(values[1_234:], None, limits, xp)
    assert to_host(parts).tolist() == to_host(histogram(values, None, limits, xp)).tolist()


@pytest.mark.parametrize("wrong", [[1.0], [1.0, 1.0], [2.0, 1.0], [0.0, np.nan], [0.0, np.inf]])
def test_edges_must_ascend(wrong: list[float]) -> None:
    with pytest.raises(ParameterError, match="ascending"):
        histogram(np.zeros(3), None, np.array(wrong), np)
