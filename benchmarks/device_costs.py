"""What operators take on a core and on a GPU: the numbers that `planner/device_costs.py` holds.

Each operator gets the same rows, once on the host and, where there is a GPU, once on it. Printed are bytes of input a
second; rates of the host are per second of CPU time, so that they hold for one core of a busy machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from headwater.ops.aggregate import (
    Aggregation,
    FinalAggregateKernel,
    PartialAggregateKernel,
    state_schema,
)
from headwater.ops.distinct import DistinctKernel
from headwater.ops.expressions import col
from headwater.ops.filter import FilterKernel
from headwater.ops.join import JoinKernel
from headwater.ops.kernel import Context, Kernel
from headwater.ops.project import ProjectKernel
from headwater.ops.sort import SortKernel, SortKey, TopKKernel

TURNS = 5


def rows(count: int) -> pa.Table:
    """Keys of a few thousand values, prices and quantities, some of them null."""
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "key": rng.integers(0, 5000, count),
            "id": rng.permutation(count),
            "price": pa.array(rng.normal(100, 10, count), mask=rng.random(count) < 0.01),
            "tax": rng.random(count),
            "quantity": rng.integers(1, 50, count),
        }
    )


def operators(schema: pa.Schema) -> dict[str, tuple[Kernel, int]]:
    """Each operator, and how many inputs of the same rows it takes."""
    sums = (Aggregation("total", "sum", "price"), Aggregation("n", "count", None))
    states = state_schema(schema, ("key",), sums)
    output = pa.schema([("key", pa.int64()), ("total", pa.float64()), ("n", pa.int64())])
    charge = (col("price") * (1 - col("tax")) * col("quantity")).alias("charge")
    projected = pa.schema([("key", pa.int64()), ("charge", charge.infer(schema))])
    joined = pa.schema([*schema, pa.field("tax_right", pa.float64())])
    return {
        "Filter": (FilterKernel((col("price") > 100) & (col("quantity") < 30)), 1),
        "Project": (ProjectKernel((("key", col("key")), ("charge", charge)), projected), 1),
        "PartialAggregate": (PartialAggregateKernel(("key",), sums, states), 1),
        "FinalAggregate": (FinalAggregateKernel(("key",), sums, output), 1),
        "Distinct": (DistinctKernel(("id",)), 1),
        "Join": (JoinKernel(("id",), ("id",), "inner", (("tax", "tax_right"),), joined), 2),
        "Sort": (SortKernel((SortKey("price"), SortKey("id"))), 1),
        "TopK": (TopKKernel((SortKey("price", descending=True),), 100), 1),
    }


def inputs_of(name: str, table: pa.Table, made: dict[str, tuple[Kernel, int]]) -> pa.Table:
    """What an operator reads: states for the final aggregation, rows for others."""
    if name != "FinalAggregate":
        return table
    partial = made["PartialAggregate"][0]
    parts = [
        list(partial.run([iter([table.slice(at, 20_000)])], Context()))
        for at in range(0, table.num_rows, 20_000)
    ]
    return pa.concat_tables([state for part in parts for state in part])


def seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    """The median time of a call."""
    taken = []
    for _ in range(TURNS):
        start = clock()
        function()
        taken.append(clock() - start)
    return statistics.median(taken)


def host_rates(count: int) -> dict[str, float]:
    """Bytes of input a second of CPU time, by operator."""
    table = rows(count)
    made = operators(table.schema)
    rates = {}
    for name, (kernel, inputs) in made.items():
        given = inputs_of(name, table, made)

        def run(kernel: Kernel = kernel, given: pa.Table = given, inputs: int = inputs) -> None:
            for _ in kernel.run([iter([given]) for _ in range(inputs)], Context(memory_bytes=8 << 30)):
                pass

        rates[name] = given.nbytes * inputs / seconds(run, time.process_time)
    return rates


def device_rates(count: int) -> dict[str, float]:
    """The same on a GPU, per second of wall time; and of crossing to it and back, the link's."""
    import cupy

    from headwater.ops.backend import use_backend
    from headwater.ops.device.operators import device_kernel
    from headwater.ops.device.table import to_arrow, to_device

    table = rows(count)
    made = operators(table.schema)
    rates = {}
    with use_backend("cupy"):
        there = to_device(table, cupy)

        def waited(function: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                function()
                cupy.cuda.Device().synchronize()

            return run

        rates["to device"] = table.nbytes / seconds(waited(lambda: to_device(table, cupy)), time.perf_counter)
        rates["to host"] = table.nbytes / seconds(waited(lambda: to_arrow(there)), time.perf_counter)
        for name, (kernel, inputs) in made.items():
            given = inputs_of(name, table, made)
            held = to_device(given, cupy)
            lowered = device_kernel(kernel, [given.schema] * inputs)
            if isinstance(lowered, str):
                continue

            def run(lowered: Any = lowered, held: Any = held, inputs: int = inputs) -> None:
                for _ in lowered.run([iter([held]) for _ in range(inputs)], Context(memory_bytes=8 << 30)):
                    pass

            run()  # compiles
            rates[name] = held.nbytes * inputs / seconds(waited(run), time.perf_counter)
    return rates


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 22
    host = host_rates(count)
    try:
        device = device_rates(count)
    except ImportError:
        device = {}
        print("there is no CuPy here: the host alone")
    print(f"{'operator':<20}{'host GB/s':>12}{'device GB/s':>14}")
    for name in [*host, *(name for name in device if name not in host)]:
        values = [f"{rates[name] / 1e9:.2f}" if name in rates else "-" for rates in (host, device)]
        print(f"{name:<20}{values[0]:>12}{values[1]:>14}")


if __name__ == "__main__":
    main()
