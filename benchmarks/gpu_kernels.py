"""Device kernels: bytes a second beside a plain copy's, and times beside CuPy's and PyTorch's nearest operations.

Memory-bound kernels are to reach 60% of the bandwidth of a copy, counting only what they must move: every column read
once, every result written once, whatever a kernel moves beyond that. Group-by, join and sort are timed beside what CuPy
and PyTorch have for it; both are given keys and values in arrays, without nulls. Last come sorts beyond the device's
memory. Times are medians of events on the
device around several calls, after two that compile and fill the pool; so the host prepares a call while the device
does the one before, except where a call must wait to know how many rows it leaves. Give it so many rows that columns
are far larger than the device's cache.

    python benchmarks/gpu_kernels.py --rows 50000000
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import cupy
import markdown
import numpy as np
import pyarrow as pa
from gpu_ipc import Neighbour
from gpu_sorts import sorts_table
from sections import Sections

from headwater.ops import optim
from headwater.ops.backend import use_backend
from headwater.ops.device import lowerings as lowerings
from headwater.ops.device.arrays.compaction import compact
from headwater.ops.device.arrays.gather import take_columns
from headwater.ops.device.arrays.grouping import group
from headwater.ops.device.arrays.key_index import DeviceKeyIndex
from headwater.ops.device.arrays.segmented import sums
from headwater.ops.device.arrays.sketches import number_buckets, tally
from headwater.ops.device.arrays.word_order import sort_order
from headwater.ops.device.column import DeviceColumn
from headwater.ops.device.device_kernel import DeviceKernel, device_kernel
from headwater.ops.device.fused.fusion import lower_expressions
from headwater.ops.device.fused.words import Tables
from headwater.ops.device.operators.filter import DeviceFilter
from headwater.ops.device.operators.filter_project import DeviceFilterProject, fused
from headwater.ops.device.operators.partition import hash_partition
from headwater.ops.device.table import DeviceTable
from headwater.ops.expressions import col
from headwater.ops.filter import FilterKernel
from headwater.ops.kernel import Kernel
from headwater.ops.project import ProjectKernel
from headwater.ops.quantiles import mantissa_bits

Call = Callable[[], Any]
#: segments of the hash partition
PARTS = 64
#: calls between two events
CALLS = 4


def milliseconds(call: Call, turns: int) -> float:
    """The median time of a call on the device."""
    call()
    call()
    taken = []
    for _ in range(turns):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        taken.append(cupy.cuda.get_elapsed_time(begin, end) / CALLS)
    return max(statistics.median(taken), 1e-6)


def table_of(**arrays: Any) -> DeviceTable:
    """A table of arrays of the device, without nulls."""
    columns = tuple(DeviceColumn(pa.from_numpy_dtype(array.dtype), array) for array in arrays.values())
    schema = pa.schema([(name, column.type) for name, column in zip(arrays, columns)])
    return DeviceTable(columns, schema, len(columns[0]))


def chain_over(table: DeviceTable, *kernels: Kernel) -> Call:
    """A filter, and what follows it, as a stage runs them."""
    whole: DeviceKernel | None = None
    schema = table.schema
    for kernel in kernels:
        lowered = device_kernel(kernel, [schema])
        assert isinstance(lowered, DeviceKernel), lowered
        joined = lowered if whole is None else fused(whole, lowered)
        assert isinstance(joined, DeviceKernel), joined
        whole, schema = joined, kernel.schema if isinstance(kernel, ProjectKernel) else schema
    assert isinstance(whole, DeviceFilter | DeviceFilterProject)
    chain, tables = whole.chain, Tables(cupy)
    return lambda: chain.run(table, cupy, tables)


def memory_bound(rows: int) -> dict[str, tuple[float, Call]]:
    """Each kernel with the bytes it must move."""
    rng = np.random.default_rng(0)
    a, b, c = (cupy.asarray(rng.normal(size=rows)) for _ in range(3))
    keys = cupy.asarray(rng.integers(0, 1 << 40, rows))
    keep = a > 0
    kept = int(keep.sum())
    table, rows_of_three = table_of(key=keys, a=a, b=b), table_of(a=a, b=b, c=c)
    plan = lower_expressions([col("a") * (1 - col("b")) + col("c")], rows_of_three.schema)
    assert not isinstance(plan, str)
    projection = (("key", col("key")), ("x", col("a") * (1 - col("b"))))
    schema = pa.schema([("key", pa.int64()), ("x", pa.float64())])
    above = FilterKernel(col("a") > 0)
    adam = optim.adam(1e-3)
    params = {"w": a.astype(cupy.float32)}
    grads, state = {"w": b.astype(cupy.float32)}, adam.init(params)
    return {
        "copy (8 bytes a row)": (16.0 * rows, lambda: a.copy()),
        "filter, 3 columns, half kept": (24.0 * (rows + kept), chain_over(table, above)),
        "filter and projection, 2 columns of 3, half kept": (
            24.0 * rows + 16.0 * kept,
            chain_over(table, above, ProjectKernel(projection, schema)),
        ),
        "rows of a mask, 3 columns, half kept": (
            rows + 24.0 * (rows + kept),
            lambda: compact([keys, a, b], keep, cupy),
        ),
        "a * (1 - b) + c": (32.0 * rows, lambda: plan.run(rows_of_three, cupy)),
        f"hash partition into {PARTS}, 3 columns": (
            48.0 * rows,
            lambda: hash_partition(table, ("key",), PARTS, cupy),
        ),
        "Adam, float32": (28.0 * rows, lambda: adam.update(grads, state, params, 1)),
    }


def moved_rows(rows: int) -> dict[str, tuple[float, Call]]:
    """Columns that are gathered, as `memory_bound`."""
    rng = np.random.default_rng(2)
    columns = table_of(key=cupy.arange(rows), a=cupy.zeros(rows), b=cupy.ones(rows)).columns
    places = {"next to each other": np.arange(rows), "anywhere": rng.permutation(rows)}
    jobs: dict[str, tuple[float, Call]] = {}
    for how, place in places.items():
        there = cupy.asarray(place)
        jobs[f"gather of 3 columns, rows {how}"] = (
            56.0 * rows,
            lambda there=there: take_columns(columns, there, cupy),  # type: ignore[misc]
        )
    return jobs


def sketched(rows: int) -> dict[str, tuple[float, Call]]:
    """Both steps of quantiles, as `memory_bound`."""
    rng = np.random.default_rng(3)
    values, bits = cupy.asarray(rng.lognormal(3, 1, rows)), mantissa_bits({})
    numbered = number_buckets(values, None, bits, cupy)
    jobs: dict[str, tuple[float, Call]] = {
        "buckets of quantiles": (12.0 * rows, lambda: number_buckets(values, None, bits, cupy))
    }
    for groups in (1, 16, 10_000):
        codes = cupy.asarray(rng.integers(0, groups, rows).astype(np.int32))
        jobs[f"tally of buckets, {groups:,} group{'s' * (groups > 1)}"] = (
            8.0 * rows,
            lambda codes=codes, groups=groups: tally(codes, numbered, None, groups, cupy),  # type: ignore[misc]
        )
    return jobs


def between_processes(rows: int, stack: ExitStack) -> dict[str, tuple[float, Call]]:
    """Copies from another process on the device, as `memory_bound`; it lives as long as the stack."""
    neighbour = stack.enter_context(Neighbour(rows))

    def mapped() -> None:
        if not held:
            held.append(stack.enter_context(closing(neighbour.mapped())))
        neighbour.copy()

    held: list[Any] = []
    return {
        "copy from another process, memory mapped anew": (2.0 * neighbour.bytes, neighbour.copy),
        "copy from another process, memory mapped before": (2.0 * neighbour.bytes, mapped),
    }


def torch_of(array: Any) -> Any:
    """The same memory as a tensor."""
    import torch

    return torch.from_dlpack(array)


def relational(rows: int) -> dict[str, dict[str, Call]]:
    """Each operation in Headwater, CuPy and PyTorch."""
    import torch

    rng = np.random.default_rng(1)
    values = cupy.asarray(rng.normal(size=rows))
    jobs: dict[str, dict[str, Call]] = {}
    for groups in (16, 1_000, rows // 10):
        keys = cupy.asarray(rng.integers(0, groups, rows))
        column = DeviceColumn(pa.int64(), keys)
        tensor, weights = torch_of(keys), torch_of(values)

        def ours(column: DeviceColumn = column) -> Any:
            return sums(values, group([column], rows, cupy))

        def by_cupy(keys: Any = keys) -> Any:
            _, codes = cupy.unique(keys, return_inverse=True)
            return cupy.bincount(codes, weights=values)

        def by_torch(tensor: Any = tensor, weights: Any = weights) -> Any:
            _, codes = torch.unique(tensor, return_inverse=True)
            return torch.zeros(int(codes.max()) + 1, dtype=torch.float64, device=tensor.device).scatter_add_(
                0, codes, weights
            )

        jobs[f"sum by {groups:,} keys"] = {"Headwater": ours, "CuPy": by_cupy, "PyTorch": by_torch}

    orders = {
        "64-bit keys": rng.integers(0, 1 << 62, rows).astype(np.uint64),
        "keys below 2**31": rng.integers(0, 1 << 31, rows).astype(np.uint64),
        "prices as doubles": np.round(rng.random(rows) * 9e4 + 900, 2).view(np.uint64),
    }
    for name, values_of_words in orders.items():
        word = cupy.asarray(values_of_words)
        tensor = torch_of(word.view(cupy.int64))
        jobs[f"order of {name}"] = {
            "Headwater": lambda word=word: sort_order([word], rows, cupy),
            "CuPy": lambda word=word: cupy.argsort(word),
            "PyTorch": lambda tensor=tensor: torch.sort(tensor, stable=True),
        }

    small = max(1, rows // 10)
    build = cupy.asarray(rng.permutation(small))
    probe = cupy.asarray(rng.integers(0, small, rows))
    left, right = DeviceColumn(pa.int64(), probe), DeviceColumn(pa.int64(), build)
    build_tensor, probe_tensor = torch_of(build), torch_of(probe)

    def joined() -> Any:
        return DeviceKeyIndex([right], cupy).lookup([left])

    def joined_by_cupy() -> Any:
        order = cupy.argsort(build)
        return order[cupy.searchsorted(build[order], probe)]

    def joined_by_torch() -> Any:
        ordered, order = torch.sort(build_tensor)
        return order[torch.searchsorted(ordered, probe_tensor)]

    jobs[f"join to {small:,} unique keys"] = {
        "Headwater": joined,
        "CuPy": joined_by_cupy,
        "PyTorch": joined_by_torch,
    }
    return jobs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, help="after which nothing more is begun")
    options = parser.parse_args()
    sections = Sections(options.seconds)
    with use_backend("cupy"):
        memory_bound_table(options.rows, options.turns, sections)
        relational_table(options.rows, options.turns, sections)
        sorts_table(options.rows // 4, sections)
    return sections.status()


def memory_bound_table(count: int, turns: int, sections: Sections) -> None:
    """Measure the kernels that memory bounds, and print them."""
    rows, copied = [], 0.0
    with ExitStack() as stack:
        parts: dict[str, Callable[[], dict[str, tuple[float, Call]]]] = {
            "kernels": lambda: memory_bound(count),
            "gathers": lambda: moved_rows(count),
            "sketches": lambda: sketched(count),
            "copies between processes": lambda: between_processes(count, stack),
        }
        for part, jobs in parts.items():
            for name, (moved, call) in (sections.run(part, jobs) or {}).items():
                taken = sections.run(name, lambda call=call: milliseconds(call, turns))
                if taken is not None:
                    rate = moved / taken / 1e6
                    copied = copied or rate
                    rows.append([name, moved / 1e9, rate, f"{100 * rate / copied:.0f}%"])
    print(markdown.table(["kernel", "GB", "GB/s", "of a copy"], rows), flush=True)


def relational_table(count: int, turns: int, sections: Sections) -> None:
    """Measure group-by, sort and join beside others, and print them."""
    lines = []
    for name, engines in (sections.run("operations", lambda: relational(count)) or {}).items():
        taken = [
            sections.run(f"{name}, {engine}", lambda call=call: milliseconds(call, turns))
            for engine, call in engines.items()
        ]
        cupy.get_default_memory_pool().free_all_blocks()  # PyTorch has a pool of its own
        lines.append([name, *("-" if each is None else each for each in taken)])
    print(markdown.table(["operation", "Headwater, ms", "CuPy, ms", "PyTorch, ms"], lines))


if __name__ == "__main__":
    sys.exit(main())
