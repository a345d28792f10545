"""Slicing: how many partitions a task carries. Pure; the outcome never changes partitions or blocks.

A task costs 2-20 ms whatever it does, a partition about 1 ms. So small partitions go together until
a task carries some 96 MB, but never so many that threads would have nothing to do.
"""

from __future__ import annotations

import numpy as np

#: bytes of input that make a task worth its overhead many times
TARGET_BYTES = 96 << 20
#: bytes of input below which another task costs more than it gains
SMALL_BYTES = 1 << 20
#: what a partition costs on top of its bytes, expressed in bytes
PARTITION_COST = 64 << 10
#: tasks for each thread, so that uneven ones even out
TASKS_PER_THREAD = 3
#: most partitions in a task
MAX_PARTITIONS = 256
#: most input segments in a task, as each is an object to send
MAX_SEGMENTS = 20_000


def slice_partitions(
    partitions: np.ndarray, input_bytes: np.ndarray, threads: int, fan_in: int = 1
) -> list[np.ndarray]:
    """Cut partitions into runs of neighbours, one run a task.

    Args:
        partitions: indices to compute, ascending; shape (n,).
        input_bytes: measured or estimated input of each, in bytes; shape (n,).
        threads: worker threads there are.
        fan_in: input segments of one partition.

    Returns:
        Arrays of partitions, in order, together exactly ``partitions``.

    Example:
        >>> [len(run) for run in slice_partitions(np.arange(8), np.full(8, 100), threads=2)]
        [4, 4]
        >>> [len(run) for run in slice_partitions(np.arange(4), np.full(4, 64 << 20), threads=2)]
        [1, 1, 1, 1]
    """
    count = len(partitions)
    if count == 0:
        return []
    threads = max(1, threads)
    weights = np.asarray(input_bytes, dtype=np.float64) + PARTITION_COST
    total = float(weights.sum())
    wanted = max(min(count, threads), min(TASKS_PER_THREAD * threads, int(total / SMALL_BYTES)))
    goal = min(TARGET_BYTES, total / wanted)
    middles = np.cumsum(weights) - weights / 2
    groups = (middles / goal).astype(np.int64)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    most = max(1, min(MAX_PARTITIONS, MAX_SEGMENTS // max(1, fan_in)))
    return [
        run[at : at + most] for run in np.split(partitions, starts[1:]) for at in range(0, len(run), most)
    ]
