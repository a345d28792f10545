"""Planning time by number of partitions, and what a run of many tiny partitions costs.

python benchmarks/planning.py
"""

from __future__ import annotations

import os
import time

import headwater as hw
from headwater import col
from headwater.session import plan


def pipeline(partitions: int) -> hw.Dataset:
    """A scan, a filter, a shuffled join, an aggregation and a sort."""
    ids = hw.range(partitions * 10, partitions=partitions).filter(col("id") % 3 == 0)
    other = hw.range(partitions * 10, partitions=partitions).with_columns(key=col("id"), x=col("id") % 7)
    joined = ids.join(other, left_on="id", right_on="key", strategy="shuffle")
    return joined.group_by("x").agg(n=hw.count()).sort("x")


def main() -> None:
    """Print seconds of planning, then seconds of running, at two sizes each."""
    print(f"load {os.getloadavg()[0]:.1f}")
    for partitions in (100, 1_000, 10_000, 100_000):
        dataset = pipeline(partitions)
        start = time.perf_counter()
        stages = plan({"result": dataset}).stages
        seconds = time.perf_counter() - start
        most = max(stage.partitions for stage in stages)
        print(f"planning {most:>7,} partitions a stage, {len(stages)} stages: {seconds:.3f} s")
    with hw.Session(workers=2, progress=False, journal=False) as session:
        hw.range(10).count(session)
        for partitions in (1_000, 10_000):
            dataset = hw.range(partitions * 10, partitions=partitions).filter(col("id") % 3 == 0)
            start = time.perf_counter()
            with session.run({"result": dataset.agg(n=hw.count())}) as result:
                seconds = time.perf_counter() - start
                tasks = sum(stage.tasks for stage in result.report.stages)
            per = seconds / partitions * 1e3
            print(
                f"running {partitions:>7,} tiny partitions in {tasks} tasks: {seconds:.2f} s, {per:.2f} ms a partition"
            )


if __name__ == "__main__":
    main()
