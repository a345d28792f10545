"""Top-k on a device finds the rows that a stable sort and a limit give, however values crowd."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import use_backend
from headwater.ops.device.device_kernel import device_kernel
from headwater.ops.device.operators import merge as device_merge
from headwater.ops.device.operators import top_k
from headwater.ops.device.operators.top_k import DeviceTopK, digit_counts, nth, smallest
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.kernel import Context
from headwater.ops.ordering import SortKey
from headwater.ops.sort import TopKKernel

RNG = np.random.default_rng(5)


def words_of(kind: str, rows: int) -> list[np.ndarray]:
    def word(top):
        return RNG.integers(0, top, rows, dtype=np.uint64, endpoint=True)

    if kind == "equal":
        return [np.full(rows, 9, np.uint64)]
    if kind == "crowded":  # one bin in each pass, but the last
        return [(np.uint64(2**64 - 2**12) | word(4095))]
    if kind == "outlier":
        words = word(9)
        words[:1] = 2**64 - 1
        return [words]
    if kind == "several":
        return [word(2), word(1), word(2**64 - 1)]
    return [word(int(kind))]


@pytest.mark.parametrize("kind", ["equal", "crowded", "outlier", "several", "5", "3000", str(2**64 - 1)])
def test_smallest(kind, xp):
    for rows, counts in ((1, (0, 1, 5)), (300, (1, 299, 400)), (9001, (1, 7, 1000, 9000))):
        words = words_of(kind, rows)
        order = np.lexsort(words[::-1])
        there = [xp.asarray(word) for word in words]
        for count in counts:
            np.testing.assert_array_equal(smallest(words, rows, count, np), order[:count])
            result = smallest(there, rows, count, xp)
            assert result.dtype == np.int64
            np.testing.assert_array_equal(result.get(), order[:count])
    assert smallest([], 5, 3, xp).get().tolist() == [0, 1, 2]
    assert smallest([], 2, 3, xp).get().tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["equal", "crowded", "outlier", "77", str(2**64 - 1)])
def test_nth(kind, xp):
    word = words_of(kind, 5003)[0]
    ordered = np.sort(word)
    for place in (0, 1, 2500, 5002):
        assert nth(word, place, np) == nth(xp.asarray(word), place, xp) == ordered[place]


@pytest.mark.gpu
def test_beyond_two_thousand_million_rows(xp):
    rows = (1 << 31) + 77
    if xp.cuda.Device().mem_info[0] < 60 << 30:
        pytest.skip("needs 60 GiB of a device's memory")
    word = xp.arange(rows, dtype=np.uint64)
    word[:] = word[::-1].copy()
    assert smallest([word], rows, 5, xp).get().tolist() == list(range(rows - 1, rows - 6, -1))


def test_digit_counts(xp):
    word = words_of(str(2**64 - 1), 20_001)[0]
    there = xp.asarray(word)
    for shift, prefix in (
        (55, 0),
        (44, int(word[0] >> np.uint64(55))),
        (0, int(word[3] >> np.uint64(11))),
        (0, 5),
    ):
        here = digit_counts(word, shift, prefix, np)
        np.testing.assert_array_equal(digit_counts(there, shift, prefix, xp).get(), here)
        assert here.sum() == sum(int(w) >> shift + 11 == prefix for w in word)


@pytest.mark.parametrize("held", [None, 20_000])
@pytest.mark.parametrize("count", [0, 1, 10, 1500, 9000])
def test_operator(count, held, xp, monkeypatch, tmp_path):
    for module in (top_k, device_merge):
        monkeypatch.setattr(module, "UNIT_ROWS", 1000)
    rows = 5003
    table = pa.table(
        {
            "x": pa.array(RNG.choice([0.0, -0.0, 1.5, np.nan, -3.0], rows), mask=RNG.random(rows) < 0.1),
            "t": pa.array(RNG.choice(["b", "", "a", "ab"], rows).astype(object), pa.string()),
            "row": np.arange(rows),
        }
    )
    ends = [0, 3, 3, 2000, 4096, rows]
    for keys in (
        (SortKey("x"),),
        (SortKey("t", True), SortKey("x", nulls_first=True)),
        (SortKey("x", True, True), SortKey("row", True)),
    ):
        expected = list(TopKKernel(keys, count).run([iter([table])], Context()))
        for namespace in (np, xp):
            parts = (to_device(table.slice(a, b - a), namespace) for a, b in zip(ends, ends[1:]))
            context = Context(memory_bytes=100_000, spill_root=tmp_path)
            with use_backend(namespace.__name__):
                result = list(DeviceTopK(keys, count, held).run([parts], context))
            assert all(t.rows <= 1000 for t in result)
            if not count:
                assert result == expected == []
                continue
            whole = pa.concat_tables(map(to_arrow, result))
            assert repr(whole.to_pydict()) == repr(pa.concat_tables(expected).to_pydict())


def test_lowering():
    kernel = TopKKernel((SortKey("x"),), 5)
    assert device_kernel(kernel, [pa.schema([("x", pa.int64())])]) == DeviceTopK(kernel.keys, 5)
    assert "'x'" in device_kernel(kernel, [pa.schema([("x", pa.binary())])])
