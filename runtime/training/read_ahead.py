"""Read ahead: a thread brings the next batch of a pass, to the device too, while the one before is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from ...ops.training.program import Batch


def read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give the same batches, each begun while the one before is in use.

    Args:
        batches: used by one thread at a time, which isn't the caller's.

    Example:
        >>> [batch["x"] for batch in read_ahead(iter([{"x": 1}, {"x": 2}]))]
        [1, 2]
    """
    context = copy_context()  # the array namespace may have been chosen for the calling thread alone

    def following() -> Batch | None:
        return context.run(next, batches, None)

    with ThreadPoolExecutor(1, thread_name_prefix="headwater-read-ahead") as pool:
        coming = pool.submit(following)
        while (batch := coming.result()) is not None:
            coming = pool.submit(following)
            yield batch
