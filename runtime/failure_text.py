"""Failure texts: what a run says when it can't go on, with the operator, the partitions and the function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import NonDeterministicError, RunFailedError
from ..lineage.suspects import location
from ..ops.map_batches import MapBatchesKernel
from ..ops.training.train import TrainKernel
from ..planner.plan import Stage, all_kernels


def partitions_text(partitions: np.ndarray) -> str:
    """Write the partitions of a task.

    Example:
        >>> partitions_text(np.array([3, 4]))
        'partitions 3 to 4'
    """
    if len(partitions) == 1:
        return f"partition {partitions[0]}"
    return f"partitions {partitions[0]} to {partitions[-1]}"


def functions_text(stage: Stage) -> str:
    """Name the user functions of a stage and where they were written; empty if it has none."""
    named: list[str] = []
    for kernel in all_kernels(stage.operator):
        if isinstance(kernel, MapBatchesKernel):
            named.append(f"map_batches({kernel.name}), {location(kernel.function)}")
        elif isinstance(kernel, TrainKernel):
            functions = kernel.objective.functions()
            named += [f"train({getattr(f, '__name__', type(f).__name__)}), {location(f)}" for f in functions]
    return " or ".join(dict.fromkeys(named))


def with_cause(text: str, cause: BaseException) -> RunFailedError:
    """Make a RunFailedError that was caused by another error."""
    error = RunFailedError(text)
    error.__cause__ = cause
    return error


def poisonous(stage: Stage, partitions: np.ndarray, culprits: Sequence[str]) -> RunFailedError:
    """Say that a task kills whatever process it runs in."""
    functions = functions_text(stage)
    where = f" The user function there is {functions}." if functions else ""
    return RunFailedError(
        f"{stage.label}: {partitions_text(partitions)} took {len(culprits)} workers down "
        f"({', '.join(culprits)}), the last times alone.{where} The usual causes are memory (give workers more, "
        "or use smaller partitions) and crashes in native code; the workers' logs tell."
    )


def non_deterministic(stage: Stage, partition: int, read: bool = False) -> NonDeterministicError:
    """Say that a partition came out different when it was computed again.

    Args:
        stage: whose partition it is.
        partition: its index.
        read: whether it is an output that was declared to differ, and whose first bytes were read already.
    """
    functions = functions_text(stage)
    if read:
        return NonDeterministicError(
            f"{stage.label}: partition {partition} was computed again and came out different, as "
            f"deterministic=False allows{f' ({functions})' if functions else ''}, but rows made of the first "
            "result have been read already. Use run() or compute() instead of iter_batches(), or make the "
            "function repeat itself."
        )
    cause = f"The cause is in {functions}. " if functions else "Has a file it reads changed since? "
    return NonDeterministicError(
        f"{stage.label}: partition {partition} was computed again and came out different. {cause}"
        "Functions given to Headwater must return the same for the same rows: no clocks, no unseeded random "
        "numbers, no state, no order of sets. `headwater check FILE` finds the line; deterministic=False "
        "declares that it can't be helped, and costs making everything again that was made of such rows."
    )
