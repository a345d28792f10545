"""Direct launch: tasks go straight to the workers of a cluster that nobody else uses, past Dask's scheduler.

A task by way of Dask takes some 5 ms of processor time, and as long until its result is there; this way it takes less
than 1 ms. What Dask's scheduler does not see it can't count: it would give the worker other users' tasks, or take it
for idle. So this is for the clusters that a session starts for itself. Who lives is learnt from Dask as ever, and which
attempts count is decided by the driver and by `Admission` on the worker, whichever way they come.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable

from .executor import failed
from .scheduler_events import Event, FailureKind, TaskFinished
from .task import Task, TaskResult

#: seconds for a worker to say that it has tasks, before it is asked whether it lives
_SEND_SECONDS = 30.0
#: seconds for Dask to say that a worker is gone which can't be reached
_DEATH_SECONDS = 5.0
_POLL_SECONDS = 0.05


class DirectLaunch:
    """The tasks of one run that were sent, and not heard of since.

    Args:
        run: the run's id.
        loop: the client's event loop.
        call: calls a handler of a worker: address, name and arguments; raises if it can't.
        put: takes events.
    """

    def __init__(
        self,
        run: str,
        loop: asyncio.AbstractEventLoop,
        call: Callable[..., Awaitable[object]],
        put: Callable[[Event], None],
    ):
        self._run, self._loop, self._call, self._put = run, loop, call, put
        #: by `Task.name`: the attempts that are under way, and where
        self._under_way: dict[str, tuple[Task, str]] = {}
        #: by stage; and (worker, stage) to those that arrived
        self._programs: dict[int, bytes] = {}
        self._known: dict[tuple[str, int], bytes] = {}
        self._waiting: dict[str, list[Task]] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._quiet = asyncio.Event()

    # -- the driver's side ----------------------------------------------------------------------

    def prepare(self, stage: int, payload: bytes) -> None:
        """Tasks of a stage may follow, with this program."""
        self._programs[stage] = payload

    def launch(self, task: Task, worker: str) -> None:
        """Send a task; those for one worker arrive in order, and together if they come together."""
        self._under_way[task.name] = task, worker
        self._loop.call_soon_threadsafe(self._enqueue, task, worker)

    def left(self, worker: str) -> None:
        """A worker is gone, and the scheduler has been told."""
        for name, (_, address) in list(self._under_way.items()):
            if address == worker:
                self._under_way.pop(name, None)
        self._loop.call_soon_threadsafe(self._look)

    def names(self) -> list[str]:
        """`Task.name` of the attempts that are under way."""
        return list(self._under_way)

    # -- in the event loop ----------------------------------------------------------------------

    def outcome(self, name: str, outcome: TaskResult | BaseException) -> None:
        """A worker tells what became of an attempt."""
        known = self._under_way.pop(name, None)
        if known is not None:
            task, worker = known
            done = isinstance(outcome, TaskResult)
            self._put(TaskFinished(outcome) if done else failed(task, worker, outcome))  # type: ignore[arg-type]
        self._look()

    async def ended(self, seconds: float) -> None:
        """Wait until nothing is under way, or give it up."""
        self._look()
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            self._under_way.clear()

    def _look(self) -> None:
        if self._under_way:
            self._quiet.clear()
        else:
            self._quiet.set()

    def _enqueue(self, task: Task, worker: str) -> None:
        self._waiting.setdefault(worker, []).append(task)
        if worker not in self._sending:
            self._sending[worker] = asyncio.ensure_future(self._send(worker))

    async def _send(self, worker: str) -> None:
        """Send what waits for a worker, one message after the other."""
        try:
            while tasks := self._waiting.pop(worker, []):
                needed = {(worker, task.stage): self._programs[task.stage] for task in tasks}
                new = {key: payload for key, payload in needed.items() if self._known.get(key) is not payload}
                packed = [(task.name, task.stage, pickle.dumps(task)) for task in tasks]
                try:
                    programs = [(stage, payload) for (_, stage), payload in new.items()]
                    call = self._call(worker, "launch", run=self._run, tasks=packed, programs=programs)
                    await asyncio.wait_for(call, _SEND_SECONDS)
                    self._known.update(new)
                except Exception as error:
                    await self._not_sent(tasks, worker, error)
        finally:
            del self._sending[worker]

    async def _not_sent(self, tasks: list[Task], worker: str, error: Exception) -> None:
        """A worker doesn't answer: most likely it died, and its tasks go elsewhere as soon as Dask says so."""
        deadline = self._loop.time() + _DEATH_SECONDS
        while self._loop.time() < deadline and any(task.name in self._under_way for task in tasks):
            await asyncio.sleep(_POLL_SECONDS)
        for task in tasks:
            if self._under_way.pop(task.name, None) is not None:
                self._put(failed(task, worker, error, FailureKind.OTHER))
        self._look()
