"""The inputs of a check: some partitions of what each operator reads, computed once and kept as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..ops.kernel import MORSEL_ROWS
from ..ops.map_batches import MapBatches
from ..planner.optimizer import optimize
from ..planner.options import PlanOptions
from ..planner.physical import build_plan
from .check_process import Sample, write_rows
from .driver import Driver
from .executor import Executor
from .scheduler import Scheduler

#: batches of a partition that are taken, at most
MOST_BATCHES = 8


def sample_inputs(
    nodes: Sequence[MapBatches], most: int, workers: int | None, options: PlanOptions, folder: Path
) -> tuple[list[Sample], list[int]]:
    """Compute some partitions of what each operator reads.

    Args:
        nodes: the operators.
        most: partitions of each.
        workers: local worker processes that compute them; None takes this process.
        options: the planner's numbers.
        folder: for the samples' files.

    Returns:
        The samples by operator and partition, and each operator's number of partitions.
    """
    optimized, trace = optimize({str(number): node.input for number, node in enumerate(nodes)}, options)
    plan = build_plan(optimized, options, trace)
    counts = [plan.stages[plan.outputs[str(number)]].partitions for number in range(len(nodes))]
    samples = []
    executor = _executor(workers)
    try:
        with Driver(plan, executor, pipeline="check") as driver:
            wanted: dict[int, set[int]] = {}
            for number, count in enumerate(counts):
                wanted.setdefault(plan.outputs[str(number)], set()).update(spread(count, most))
            leave_out_unneeded(driver.scheduler, wanted)
            driver.run()
            for number, node in enumerate(nodes):
                for partition in spread(counts[number], most):
                    path = folder / f"input-{number}-{partition}.arrow"
                    tables = driver.read(str(number), partition)
                    rows = _first(tables, MOST_BATCHES * (node.batch_rows or MORSEL_ROWS))
                    write_rows(path, rows, node.input.schema)
                    samples.append(Sample(number, partition, path))
    finally:
        executor.close()
    return samples, counts


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` positions: the first, the last, and some between.

    Example:
        >>> spread(9, 3), spread(2, 3), spread(5, 1)
        ([0, 4, 8], [0, 1], [0])
    """
    return sorted({round(position) for position in np.linspace(0, count - 1, min(most, count)).tolist()})


def leave_out_unneeded(scheduler: Scheduler, wanted: Mapping[int, set[int]]) -> None:
    """Leave out of a run, before it starts, the partitions that the wanted ones aren't made from.

    Args:
        scheduler: the run's.
        wanted: for each output's stage, the partitions to compute.
    """
    lineage = scheduler.lineage
    needed = lineage.none()
    for run in reversed(scheduler.stages):
        stage = run.stage
        mask = needed[stage.id]
        mask[list(wanted.get(stage.id, ()))] = True
        lineage.add_parents(stage.id, mask, needed)
        for sampled in set(stage.parents) - set(lineage.sources[stage.id]):
            needed[sampled][:] |= mask.any()  # the boundaries of its ranges
        run.done[~mask] = True
        run.taken[~mask] = True


def _executor(workers: int | None) -> Executor:
    if workers is None:
        from .inline import InlineExecutor

        return InlineExecutor()
    from .cluster import open_executor

    return open_executor(None, workers=workers)


def _first(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    for table in tables:
        yield table.slice(0, rows)
        rows -= table.num_rows
        if rows <= 0:
            return
