"""Tables behind each other, as Arrow puts them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.device.table import concat, to_arrow, to_device

RANDOM = np.random.default_rng(6)


def table(rows: int, nulls: float) -> pa.Table:
    def column(values: np.ndarray, type: pa.DataType | None = None) -> pa.Array:
        return pa.array(values, type, mask=RANDOM.random(rows) < nulls)

    words = RANDOM.choice(np.array(["a", "bb", f"of {rows}"], object), rows)
    return pa.table(
        {
            "b": column(RANDOM.random(rows) < 0.5),
            "h": column(RANDOM.integers(-9, 9, rows).astype(np.int16)),
            "f": column(RANDOM.normal(size=rows).astype(np.float32)),
            "i": column(RANDOM.integers(-9, 9, rows)),
            "s": column(words, pa.string()),
        }
    )


@pytest.mark.parametrize("sizes", [(1, 1), (0, 3, 0), (5_000, 1, 4_097, 16), (20_000, 7), (0, 0)])
def test_as_arrow(xp: ModuleType, sizes: tuple[int, ...]) -> None:
    tables = [table(rows, nulls) for rows, nulls in zip(sizes, [0.3, 0.0, 0.5, 1.0])]
    wanted = pa.concat_tables(tables).combine_chunks()
    for namespace in (xp, np):
        found = concat([to_device(part, namespace) for part in tables], namespace)
        assert found.rows == wanted.num_rows
        assert to_arrow(found).equals(wanted)


def test_slices_begin_anywhere(xp: ModuleType) -> None:
    whole = table(9_000, 0.4)
    there = to_device(whole, xp)
    cuts = [(3, 5_001), (7, 8), (1, 9_000), (4_096, 8_192)]
    found = concat([there.slice(start, stop) for start, stop in cuts], xp)
    assert to_arrow(found).equals(
        pa.concat_tables([whole.slice(start, stop - start) for start, stop in cuts]).combine_chunks()
    )
