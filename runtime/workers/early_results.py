"""EarlyResults: results go from a worker straight to the driver that waits for them, past Dask's scheduler.

Dask tells its scheduler, which tells the driver, which asks the scheduler, which asks the worker. That takes as long
as a small task does. It happens all the same, so that a result that isn't collected here comes that way.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections import OrderedDict, deque
from contextlib import suppress
from typing import Any

from ..task import TaskResult

#: results that wait for a driver which doesn't ask; and runs that were asked for and didn't end
_RESULTS_HELD = 64
_RUNS_HELD = 64


class _Box:
    """What was not collected yet of a run."""

    def __init__(self) -> None:
        self.results: deque[bytes] = deque(maxlen=_RESULTS_HELD)
        self.filled = asyncio.Event()


class EarlyResults:
    """The results of a worker's tasks, by run.

    Args:
        loop: the event loop of the worker.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._lock = threading.Lock()
        self._boxes: OrderedDict[str, _Box] = OrderedDict()

    def post(self, run: str, result: TaskResult) -> None:
        """Hand a result to the driver that has asked for the run's. Called by the thread that made it."""
        with self._lock:
            box = self._boxes.get(run)
            if box is None:
                return
            box.results.append(pickle.dumps(result))
        with suppress(RuntimeError):  # the loop has ended, and the worker with it
            self._loop.call_soon_threadsafe(box.filled.set)

    async def results(self, run: str, seconds: float) -> dict[str, Any]:
        """Wait for results of a run, and give all there are; none if the time, or the run, is over."""
        with self._lock:
            box = self._boxes.setdefault(run, _Box())
            self._boxes.move_to_end(run)
            while len(self._boxes) > _RUNS_HELD:
                self._boxes.popitem(last=False)[1].filled.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(box.filled.wait(), seconds)
        with self._lock:
            found = list(box.results)
            box.results.clear()
            box.filled.clear()
            return {"status": "OK", "results": found, "over": self._boxes.get(run) is not box}

    def forget(self, run: str) -> None:
        """The run is over; who waits for its results is told. Called in the event loop."""
        with self._lock:
            box = self._boxes.pop(run, None)
        if box is not None:
            box.filled.set()
