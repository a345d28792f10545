"""What plans cost: by partitions and by stages, in planning, in the driver and in a whole run.

python benchmarks/planning.py [--most 100000] [--skip-runs]
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from functools import partial

import psutil
from markdown import table
from scheduling import simulate

import headwater as hw
from headwater import Dataset, col
from headwater.session import plan

PARTITIONS = (100, 1_000, 10_000, 100_000)


def mapped(partitions: int) -> Dataset:
    """One stage."""
    return hw.range(partitions * 10, partitions=partitions).filter(col("id") % 3 == 0).agg(n=hw.count())


def shuffled(partitions: int) -> Dataset:
    """A map stage, an exchange, and a reduce stage of as many partitions as its bytes ask for."""
    ids = hw.range(partitions * 10, partitions=partitions)
    return ids.with_columns(key=col("id") % 97).group_by("key").agg(n=hw.count())


def joined(partitions: int) -> Dataset:
    """Two scans, a filter, a shuffled join, an aggregation and a sort."""
    ids = hw.range(partitions * 10, partitions=partitions).filter(col("id") % 3 == 0)
    other = hw.range(partitions * 10, partitions=partitions).with_columns(key=col("id"), x=col("id") % 7)
    both = ids.join(other, left_on="id", right_on="key", strategy="shuffle")
    return both.group_by("x").agg(n=hw.count()).sort("x")


def united(count: int) -> Dataset:
    """A union of scans."""
    scans = [hw.range(i, i + 10, partitions=1).filter(col("id") > i) for i in range(count)]
    return scans[0].union(*scans[1:])


def chained(count: int) -> Dataset:
    """Narrow operators, one after the other."""
    rows = hw.range(10)
    for _ in range(count):
        rows = rows.with_columns(id=col("id") + 1)
    return rows


def staged(count: int) -> Dataset:
    """Shuffled joins, one after the other: a stage for each."""
    rows = hw.range(1_000, partitions=2)
    for i in range(count):
        other = hw.range(1_000, partitions=2).with_columns(**{f"x{i}": col("id") + i})
        rows = rows.join(other, on="id", strategy="shuffle")
    return rows


def planning_table(most: int) -> str:
    """Processor time to plan, and to decide about each partition in a run."""
    rows = []
    for shape in (mapped, shuffled, joined):
        for partitions in [n for n in PARTITIONS if n <= most]:
            dataset = shape(partitions)
            start = time.process_time()
            physical = plan({"result": dataset})
            planned = time.process_time() - start
            cost = simulate(physical)
            peak = simulate(physical, memory=True).peak_bytes if partitions <= 10_000 else 0
            per = 1e6 / cost.partitions
            rows.append(
                [
                    shape.__name__,
                    f"{partitions:,}",
                    planned,
                    cost.tasks,
                    cost.seconds * per,
                    cost.sent_bytes / cost.partitions,
                    f"{peak / cost.partitions:.0f}" if peak else "",
                ]
            )
    head = ["plan", "partitions", "s to plan", "tasks", "driver µs/partition", "bytes sent/partition"]
    return table([*head, "driver bytes/partition"], rows)


def shapes_table() -> str:
    """Processor time to plan, and to run, plans of many operators."""
    rows = []
    for shape, counts in ((united, (10, 100, 1_000)), (chained, (10, 100, 1_000)), (staged, (10, 50, 200))):
        for count in counts:
            start = time.process_time()
            dataset = shape(count)
            declared = time.process_time() - start
            start = time.process_time()
            physical = plan({"result": dataset})
            planned = time.process_time() - start
            cost = simulate(physical)
            each = cost.seconds / cost.tasks * 1e3
            rows.append(
                [shape.__name__, f"{count:,}", len(physical.stages), declared, planned, cost.tasks, each]
            )
    return table(
        ["plan", "operators", "stages", "s to declare", "s to plan", "tasks", "driver ms/task"], rows
    )


def runs_table(most: int) -> str:
    """Whole runs on two workers, with what this process and the scheduler in it take of memory."""
    rows = []
    with hw.Session(workers=2, progress=False) as session:
        hw.range(10).count(session)
        for shape in (mapped, shuffled):
            for partitions in [n for n in PARTITIONS if n <= most]:
                dataset = shape(partitions)
                seconds, cpu, added = _timed(partial(_run, dataset, session))
                per = 1e3 / partitions
                rows.append(
                    [shape.__name__, f"{partitions:,}", seconds, seconds * per, cpu * per, added / 1e6]
                )
    head = ["plan", "partitions", "s", "ms/partition", "CPU ms/partition", "driver and scheduler MB more"]
    return table(head, rows)


def _run(dataset: Dataset, session: hw.Session) -> None:
    with session.run({"result": dataset}):
        pass


def _timed(run: Callable[[], None]) -> tuple[float, float, int]:
    """Seconds, processor seconds of all processes, and bytes that this process holds more than before."""
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]

    def cpu() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    gc.collect()
    before, held, start = cpu(), me.memory_info().rss, time.perf_counter()
    run()
    return time.perf_counter() - start, cpu() - before, max(0, me.memory_info().rss - held)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=100_000, help="partitions")
    parser.add_argument("--skip-runs", action="store_true", help="only what needs no cluster")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}\n")
    plan({"warm": joined(10)})
    print(planning_table(options.most), "\n")
    print(shapes_table(), "\n")
    if not options.skip_runs:
        print(runs_table(options.most))


if __name__ == "__main__":
    main()
