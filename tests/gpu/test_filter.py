"""DeviceFilter against FilterKernel."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import use_backend
from headwater.ops.device import lowerings  # noqa: F401  (registers the operators)
from headwater.ops.device.device_kernel import device_kernel
from headwater.ops.device.operators.filter import DeviceFilter
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.expressions import Expr, col, lit
from headwater.ops.filter import FilterKernel
from headwater.ops.kernel import Context

RANDOM = np.random.default_rng(4)
ROWS = 3_001
TABLE = pa.table(
    {
        "x": pa.array(RANDOM.integers(-50, 50, ROWS), mask=RANDOM.random(ROWS) < 0.2),
        "y": pa.array(RANDOM.normal(size=ROWS).astype(np.float32)),
        "b": pa.array(RANDOM.random(ROWS) < 0.5, mask=RANDOM.random(ROWS) < 0.5),
        "s": pa.array(RANDOM.choice(np.array(["a", "bb", None], object), ROWS), pa.string()),
    }
)
PREDICATES = [
    col("b"),
    (col("x") > 0) & (col("y") < 1) | (col("s").str.len() == 2),
    col("x") > 100,
    col("x").is_null() | (col("x") > -100),
    lit(True),
    lit(None, "bool"),
]


@pytest.mark.parametrize("predicate", PREDICATES, ids=str)
def test_as_on_the_host(xp: ModuleType, predicate: Expr) -> None:
    kernel = FilterKernel(predicate)
    lowered = device_kernel(kernel, [TABLE.schema])
    assert isinstance(lowered, DeviceFilter), lowered
    cuts = [TABLE.slice(0, 1_000), TABLE.slice(0, 0), TABLE.slice(1_000)]
    wanted = pa.concat_tables([TABLE.schema.empty_table(), *kernel.run([iter(cuts)], Context())])
    for namespace in (xp, np):
        tables = [to_device(cut, namespace) for cut in cuts]
        with use_backend(namespace.__name__):
            kept = list(lowered.run([iter(tables)], Context()))
        found = pa.concat_tables([TABLE.schema.empty_table(), *map(to_arrow, kept)])
        assert found.combine_chunks().equals(wanted.combine_chunks())
        assert all(table.rows for table in kept)
        if wanted.num_rows == ROWS:
            assert kept[0] is tables[0]


def test_refused_with_a_reason() -> None:
    nested = TABLE.append_column("l", pa.array([[1]] * ROWS))
    assert "'l'" in device_kernel(FilterKernel(col("b")), [nested.schema])
    assert "on the host" in device_kernel(FilterKernel(col("x").cast("string") == "1"), [TABLE.schema])
