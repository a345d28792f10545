"""Results: what became of a worker's tasks goes straight to the driver that asks for it, past Dask's scheduler.

A driver asks each worker, over a connection of its own, and is answered as soon as there is something. For tasks that
came by way of Dask this only saves time: Dask delivers them too, by three more trips, each through its scheduler. For
tasks that came straight from the driver (`direct_tasks`) it is the only way, so that they are held until the driver
has said that it has them.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections import OrderedDict, deque
from contextlib import suppress
from typing import Any

import cloudpickle
from tblib import pickling_support

from ..task import TaskResult

#: results of Dask's tasks that wait for a driver which doesn't ask; and runs that were asked for and didn't end
_RESULTS_HELD = 64
_RUNS_HELD = 1000


class _Box:
    """What a driver hasn't collected yet of a run."""

    def __init__(self) -> None:
        #: number of each outcome, and its bytes
        self.outcomes: deque[tuple[int, bytes]] = deque()
        self.posted = 0
        self.filled = asyncio.Event()


class Results:
    """The outcomes of a worker's tasks, by run.

    Args:
        loop: the event loop of the worker.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._lock = threading.Lock()
        self._boxes: OrderedDict[str, _Box] = OrderedDict()

    def post(self, run: str, result: TaskResult) -> None:
        """Hand a result to the driver, if it has asked for the run's. Called by the thread that made it."""
        with self._lock:
            box = self._boxes.get(run)
            if box is not None:
                self._add(box, pack_outcome(result.name, result))
                while len(box.outcomes) > _RESULTS_HELD:
                    box.outcomes.popleft()

    def deliver(self, run: str, outcome: bytes) -> None:
        """Hold what `pack_outcome` made for the driver until it has it. Called by the task's thread."""
        with self._lock:
            self._add(self._box(run), outcome)

    async def collect(self, run: str, seconds: float, after: int = 0) -> dict[str, Any]:
        """Wait for outcomes of a run, and give all there are.

        Args:
            run: its id.
            seconds: to wait at most.
            after: number of the last outcome that the driver has; 0 for none.

        Returns:
            ``outcomes``, with numbers; ``over`` says that the run is over, and nothing more will come.
        """
        with self._lock:
            box = self._box(run)
            while box.outcomes and box.outcomes[0][0] <= after:
                box.outcomes.popleft()
            if not box.outcomes:
                box.filled.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(box.filled.wait(), seconds)
        with self._lock:
            return {
                "status": "OK",
                "outcomes": [list(outcome) for outcome in box.outcomes],
                "over": self._boxes.get(run) is not box,
            }

    def forget(self, run: str) -> None:
        """The run is over; who waits for its results is told. Called in the event loop."""
        with self._lock:
            box = self._boxes.pop(run, None)
        if box is not None:
            box.filled.set()

    def _add(self, box: _Box, outcome: bytes) -> None:
        box.posted += 1
        box.outcomes.append((box.posted, outcome))
        with suppress(RuntimeError):  # the loop has ended, and the worker with it
            self._loop.call_soon_threadsafe(box.filled.set)

    def _box(self, run: str) -> _Box:
        box = self._boxes.setdefault(run, _Box())
        self._boxes.move_to_end(run)
        while len(self._boxes) > _RUNS_HELD:
            self._boxes.popitem(last=False)[1].filled.set()
        return box


def pack_outcome(name: str, outcome: TaskResult | BaseException) -> bytes:
    """Pickle what became of an attempt.

    Args:
        name: `Task.name`.
        outcome: its result, or its error, which arrives with its traceback and causes if these can be pickled.
    """
    if isinstance(outcome, TaskResult):
        return pickle.dumps((name, outcome))
    try:
        pickling_support.install(outcome, *_causes(outcome))  # with tracebacks, as Dask does
        data = cloudpickle.dumps((name, outcome))
        cloudpickle.loads(data)
        return data
    except Exception:
        return pickle.dumps((name, RuntimeError(f"{type(outcome).__name__}: {outcome}")))


def unpack_outcome(data: bytes) -> tuple[str, TaskResult | BaseException]:
    """Undo `pack_outcome`."""
    return pickle.loads(data)


def _causes(error: BaseException) -> list[BaseException]:
    """What an error came of, the nearest first."""
    found: list[BaseException] = []
    cause = error.__cause__
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__
    return found
