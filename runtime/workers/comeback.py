"""Comeback: a worker that was dropped while it could not be heard is replaced by its nanny, not ended with it."""

from __future__ import annotations

from typing import Any

from distributed import Worker

#: Dask's reasons to close a worker that its scheduler has dropped: it is told so, or finds out by its next heartbeat
_DROPPED = ("scheduler-remove-worker", "worker-heartbeat-missing")


def let_nanny_replace(worker: Worker) -> None:
    """Make a worker that learns that it was dropped leave its nanny alone when it closes.

    Dask's own way is to close the nanny first, so that nothing comes back. A worker that was only stopped or cut off
    for a while is wanted again, as a new worker. One that Dask retires goes with its nanny, as ever.

    Args:
        worker: the Dask worker.
    """
    close = worker.close

    async def close_alone(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("reason") in _DROPPED and worker.status.name != "closing_gracefully":
            kwargs["nanny"] = False
        return await close(*args, **kwargs)

    worker.close = worker.stream_handlers["close"] = close_alone
