"""Direct tasks: they come straight from the driver, and run on the threads on which Dask runs its own.

Dask's scheduler knows nothing of them, so this is for clusters that nobody else uses: those that a session has started
(see `headwater.runtime.direct_launch`).
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import time
from typing import Any

from distributed import Worker

from ..task import Task, TaskResult
from .results import Results, pack_outcome

try:  # not public: with a Dask that has them no more, tasks go by way of its scheduler
    from distributed.utils import set_thread_state
    from distributed.worker import _worker_cvar

    #: whether this version of Dask allows it
    SUPPORTED = True
except ImportError:
    SUPPORTED = False


class DirectTasks:
    """Runs the tasks that drivers send to one worker.

    Args:
        worker: the Dask worker.
        execute: runs a task with its stage's pickled program.
        results: where what becomes of them is left.
    """

    def __init__(self, worker: Worker, execute: Callable[[Task, bytes], TaskResult], results: Results):
        self._worker, self._execute, self._results = worker, execute, results
        self._lock = threading.Lock()
        self._programs: dict[tuple[str, int], bytes] = {}

    async def launch(self, run: str, tasks: Any, programs: Any) -> dict[str, Any]:
        """Begin tasks, in order, as threads are free.

        Args:
            run: their run's id.
            tasks: name, stage and pickled `Task` of each.
            programs: stage and pickled program of those that this worker hasn't got yet.
        """
        with self._lock:
            self._programs.update({(run, stage): bytes(payload) for stage, payload in programs})
            found = [(name, self._programs[run, stage], task) for name, stage, task in tasks]
        for name, payload, task in found:
            self._worker.executors["default"].submit(self._run, run, name, payload, task)
        return {"status": "OK"}

    def forget(self, run: str) -> None:
        """The run is over."""
        with self._lock:
            for key in [key for key in self._programs if key[0] == run]:
                del self._programs[key]

    def _run(self, run: str, name: str, payload: bytes, task: bytes) -> None:
        outcome: TaskResult | BaseException
        with _as_dask_task(self._worker, f"headwater-{run}-{name}"):
            try:
                outcome = self._execute(pickle.loads(task), payload)
            except BaseException as error:
                outcome = error
        self._results.deliver(run, pack_outcome(name, outcome))


@contextmanager
def _as_dask_task(worker: Worker, key: str) -> Iterator[None]:
    """Give a thread what Dask gives those of its tasks, so that `get_worker`, `get_client` and `secede` work."""
    with set_thread_state(start_time=time(), execution_state=worker.execution_state, key=key):
        token = _worker_cvar.set(worker)
        try:
            yield
        finally:
            _worker_cvar.reset(token)
