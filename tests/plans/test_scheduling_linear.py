"""The scheduler's work grows with the tasks of a plan, whatever the number of its stages and partitions."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import headwater as hw
from headwater import col
from headwater.ops.partitioner import KeySample
from headwater.runtime.scheduler import Scheduler
from headwater.runtime.scheduler_events import Launch, TaskFinished, Tick, WorkerJoined
from headwater.runtime.task import Block, Metrics, PartitionResult, TaskResult
from headwater.session import plan


def joined(count):
    """A chain of shuffled joins: a stage for each."""
    rows = hw.range(1000, partitions=2)
    for i in range(count):
        other = hw.range(1000, partitions=2).with_columns(**{f"x{i}": col("id") + i})
        rows = rows.join(other, on="id", strategy="shuffle")
    return rows


def mapped(count):
    return hw.range(count * 10, partitions=count).with_columns(y=col("id") + 1)


def shuffled(count):
    return (
        hw.range(count * 10, partitions=count).with_columns(k=col("id") % 7).group_by("k").agg(n=hw.count())
    )


def finished(stage, task):
    """What a worker would say of a task that it did."""
    segments = stage.exchange.count if stage.exchange else 1
    offsets, rows = np.arange(segments + 1, dtype=np.int64), np.ones(segments, dtype=np.int64)
    made = []
    for given in task.partitions:
        block = Block(stage.id, given.index, 0, "n", f"p{given.index}", offsets, rows, segments, "00")
        sample = KeySample(1, stage.schema.empty_table()) if stage.sample else None
        made.append(PartitionResult(given.index, 1, "00", block, (), sample))
    return TaskResult(stage.id, task.id, task.attempt, "n", "w", tuple(made), Metrics(seconds=0.01))


def work(dataset):
    """Function calls that the scheduler makes in a run, and tasks that it cuts."""
    physical = plan({"result": dataset})
    counts = {"calls": 0, "tasks": 0}

    def profile(frame, event, argument):
        counts["calls"] += event in ("call", "c_call")

    scheduler = Scheduler(physical, "run")
    instructions = [*scheduler.handle(Tick(0.0), WorkerJoined("w0", "n"), WorkerJoined("w1", "n"))]
    while not scheduler.finished:
        tasks = [one.task for one in instructions if isinstance(one, Launch)]
        counts["tasks"] += len(tasks)
        instructions = []
        for number, task in enumerate(tasks):
            result = TaskFinished(finished(physical.stages[task.stage], task))
            now = Tick(counts["tasks"] + number / 100)
            before = sys.getprofile()
            sys.setprofile(profile)
            try:
                instructions += scheduler.handle(now, result)
            finally:
                sys.setprofile(before)
    return counts


def test_twice_the_stages_take_about_twice_the_work():
    small, large = work(joined(20)), work(joined(40))
    assert large["tasks"] > 1.9 * small["tasks"]
    assert large["calls"] < 2.5 * small["calls"]


@pytest.mark.parametrize("pipeline", [mapped, shuffled])
def test_ten_times_the_partitions_take_about_ten_times_the_work(pipeline):
    small, large = work(pipeline(500)), work(pipeline(5_000))
    assert large["calls"] < 12 * small["calls"]
