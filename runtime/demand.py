"""Demand: tells Dask's scheduler how much work waits with the drivers, so that `adapt()` sees it.

Drivers hold tasks back until a thread is free for them, so what the scheduler has queued says little.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Scheduler, SchedulerPlugin

#: seconds after which a driver that says nothing more waits for nothing
EXPIRES_SECONDS = 5.0


@dataclass(frozen=True)
class Backlog:
    """What a run waits for.

    Attributes:
        tasks: that have no worker yet.
        seconds: that they will take, estimated.
        told: when the driver said so, on the monotonic clock.
    """

    tasks: int
    seconds: float
    told: float


class DemandPlugin(SchedulerPlugin):
    """Adds the drivers' backlogs to the number of workers that Dask's scheduler asks for."""

    name = "headwater-demand"
    #: the first session's is every session's
    idempotent = True

    def start(self, scheduler: Scheduler) -> None:
        """Called once in the scheduler."""
        self._scheduler = scheduler
        self._backlogs: dict[str, Backlog] = {}
        self._dasks_target = scheduler.adaptive_target
        scheduler.handlers["headwater_demand"] = self.demand
        scheduler.adaptive_target = self.target

    async def demand(self, run: str, tasks: int, seconds: float) -> dict[str, Any]:
        """A driver says what its run waits for."""
        self._forget_old()
        self._backlogs[run] = Backlog(tasks, seconds, time.monotonic())
        return {"status": "OK"}

    def target(self, target_duration: Any = None) -> int:
        """Return how many workers there should be, in place of `Scheduler.adaptive_target`."""
        duration = target_duration or dask.config.get("distributed.adaptive.target-duration")
        self._forget_old()
        workers = self._scheduler.workers.values()
        threads = sum(worker.nthreads for worker in workers)
        more = workers_wanted(list(self._backlogs.values()), parse_timedelta(duration), threads, len(workers))
        dasks = self._dasks_target(target_duration)
        return max(dasks, len(workers) + more) if more else dasks

    def _forget_old(self) -> None:
        now = time.monotonic()
        self._backlogs = {
            run: backlog for run, backlog in self._backlogs.items() if now - backlog.told < EXPIRES_SECONDS
        }


def workers_wanted(backlogs: list[Backlog], duration: float, threads: int, workers: int) -> int:
    """Count the workers that would do waiting work within a duration, beside those there are.

    Args:
        backlogs: of the runs.
        duration: seconds within which work should be done.
        threads: of all workers.
        workers: how many there are.

    Example:
        >>> workers_wanted([Backlog(tasks=30, seconds=60.0, told=0.0)], duration=5.0, threads=4, workers=2)
        6
    """
    tasks = sum(backlog.tasks for backlog in backlogs)
    seconds = sum(backlog.seconds for backlog in backlogs)
    if not tasks:
        return 0
    more_threads = min(tasks, math.ceil(seconds / duration))
    each = threads / workers if workers else 1.0
    return max(1, math.ceil(more_threads / max(each, 1.0)))
