"""What operators take on a core and on a GPU: the numbers that `planner/device_costs.py` holds.

Each operator gets the same rows, once on the host and, where there is a GPU, once on it; so do exchanges, which put
rows in the order of their segments. Printed are bytes of input a second; rates of the host are per second of CPU time,
so that they hold for one core of a busy machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from sections import Sections

from headwater.ops.aggregate import (
    Aggregation,
    FinalAggregateKernel,
    PartialAggregateKernel,
    state_schema,
)
from headwater.ops.device import lowerings as lowerings
from headwater.ops.distinct import DistinctKernel
from headwater.ops.expressions import col
from headwater.ops.filter import FilterKernel
from headwater.ops.join import JoinKernel
from headwater.ops.kernel import Context, Kernel
from headwater.ops.morsels import gather
from headwater.ops.ordering import quantiles
from headwater.ops.partitioner import HashPartitioner, Partitioner, RangePartitioner, RoundRobinPartitioner
from headwater.ops.project import ProjectKernel
from headwater.ops.sort import SortKernel, SortKey, TopKKernel

TURNS = 3
SEGMENTS = 64


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
    median = (Aggregation("median", "approx_quantile", "price", (("accuracy", 0.01), ("q", 0.5))),)
    sketches = state_schema(schema, ("key",), median)
    output = pa.schema([("key", pa.int64()), ("total", pa.float64()), ("n", pa.int64())])
    charge = (col("price") * (1 - col("tax")) * col("quantity")).alias("charge")
    projected = pa.schema([("key", pa.int64()), ("charge", charge.infer(schema))])
    joined = pa.schema([*schema, pa.field("tax_right", pa.float64())])
    return {
        "Filter": (FilterKernel((col("price") > 100) & (col("quantity") < 30)), 1),
        "Project": (ProjectKernel((("key", col("key")), ("charge", charge)), projected), 1),
        "PartialAggregate": (PartialAggregateKernel(("key",), sums, states), 1),
        "a median": (PartialAggregateKernel(("key",), median, sketches), 1),
        "FinalAggregate": (FinalAggregateKernel(("key",), sums, output), 1),
        "Distinct": (DistinctKernel(("id",)), 1),
        "Join": (JoinKernel(("id",), ("id",), "inner", (("tax", "tax_right"),), joined), 2),
        "Sort": (SortKernel((SortKey("price"), SortKey("id"))), 1),
        "TopK": (TopKKernel((SortKey("price", descending=True),), 100), 1),
    }


def exchanges(table: pa.Table) -> list[Partitioner]:
    """Each kind of partitioner that a device has kernels for."""
    keys = (SortKey("price"), SortKey("id"))
    boundaries = quantiles(table.slice(0, 2000), np.ones(min(2000, table.num_rows)), keys, SEGMENTS)
    ranges = RangePartitioner(keys, SEGMENTS, boundaries)
    return [HashPartitioner(("id",), SEGMENTS), ranges, RoundRobinPartitioner(SEGMENTS)]


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


def host_rates(count: int, sections: Sections) -> dict[str, float]:
    """Bytes of input a second of CPU time, by operator."""
    table = rows(count)
    made = operators(table.schema)
    rates = {}
    for name, (kernel, inputs) in made.items():

        def rate(name: str = name, kernel: Kernel = kernel, inputs: int = inputs) -> float:
            given = inputs_of(name, table, made)

            def run() -> None:
                for _ in kernel.run([iter([given]) for _ in range(inputs)], Context(memory_bytes=8 << 30)):
                    pass

            return given.nbytes * inputs / seconds(run, time.process_time)

        if (found := sections.run(f"{name} on the host", rate)) is not None:
            rates[name] = found
    for partitioner in exchanges(table):

        def cut(partitioner: Partitioner = partitioner) -> float:
            def run() -> None:
                segments = partitioner.assign(table, 0, 0).astype(np.uint16)
                gather(table, np.argsort(segments, kind="stable").astype(np.uint32))

            return table.nbytes / seconds(run, time.process_time)

        name = type(partitioner).__name__
        if (found := sections.run(f"{name} on the host", cut)) is not None:
            rates[name] = found
    return rates


def device_rates(count: int, sections: Sections) -> dict[str, float]:
    """The same on a GPU, per second of wall time; and of crossing to it and back, the link's."""
    import cupy
    from gpu_ipc import Neighbour
    from gpu_sorts import cut, drain

    from headwater.ops.backend import use_backend
    from headwater.ops.device.device_kernel import device_kernel
    from headwater.ops.device.operators.filter_project import fused
    from headwater.ops.device.operators.partition import partition_by, segments_of
    from headwater.ops.device.operators.sort import DeviceSort
    from headwater.ops.device.table import to_arrow, to_device

    table = rows(count)
    made = operators(table.schema)

    def timed(function: Callable[[], Any]) -> float:
        def run() -> None:
            function()
            cupy.cuda.Device().synchronize()

        run()  # compiles
        return seconds(run, time.perf_counter)

    def rate(name: str) -> float:
        kernel, inputs = made[name]
        given = inputs_of(name, table, made)
        held = to_device(given, cupy)
        lowered: Any = device_kernel(kernel, [given.schema] * inputs)
        if isinstance(lowered, str):
            raise RuntimeError(f"it has no kernel: {lowered}")

        def run() -> None:
            for _ in lowered.run([iter([held]) for _ in range(inputs)], Context(memory_bytes=8 << 30)):
                pass

        return held.nbytes * inputs / timed(run)

    def back() -> float:
        there = to_device(table, cupy)
        return table.nbytes / timed(lambda: to_arrow(there))

    def chain() -> float:
        held = to_device(table, cupy)
        lowered: list[Any] = [device_kernel(made[name][0], [table.schema]) for name in ("Filter", "Project")]
        kernel: Any = fused(*lowered)
        return held.nbytes / timed(lambda: drain(kernel.run([iter([held])], Context())))

    def by_parts() -> float:
        held = to_device(table, cupy)
        kernel = DeviceSort((SortKey("price"), SortKey("id")), held.nbytes // 8)
        return held.nbytes / timed(lambda: drain(kernel.run([cut(held)], Context(memory_bytes=8 << 30))))

    def exchanged(partitioner: Partitioner) -> float:
        held = to_device(table, cupy)

        def run() -> None:
            partition_by(held, segments_of(partitioner, held, 0, 0, cupy), SEGMENTS, cupy)

        return held.nbytes / timed(run)

    def borrowed() -> float:
        with Neighbour(count) as neighbour:
            return neighbour.bytes / timed(neighbour.copy)

    parts: dict[str, Callable[[], float]] = {
        "to device": lambda: table.nbytes / timed(lambda: to_device(table, cupy)),
        "to host": back,
        "from a process": borrowed,
        "Filter, Project": chain,
        "Sort, by parts": by_parts,
        **{name: lambda name=name: rate(name) for name in made},  # type: ignore[misc]
        **{type(each).__name__: lambda each=each: exchanged(each) for each in exchanges(table)},  # type: ignore[misc]
    }
    with use_backend("cupy"):
        found = {name: sections.run(f"{name} on the GPU", part) for name, part in parts.items()}
    return {name: value for name, value in found.items() if value is not None}


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 22
    sections = Sections()
    host = host_rates(count, sections)
    try:
        device = device_rates(count, sections)
    except ImportError:
        device = {}
        print("there is no CuPy here: the host alone")
    print(f"{'operator':<22}{'host GB/s':>12}{'device GB/s':>14}")
    for name in [*host, *(name for name in device if name not in host)]:
        values = [f"{rates[name] / 1e9:.2f}" if name in rates else "-" for rates in (host, device)]
        print(f"{name:<22}{values[0]:>12}{values[1]:>14}")
    return sections.status()


if __name__ == "__main__":
    sys.exit(main())
