"""Executions: counts in a Dask scheduler how often each task ran, what a dead worker took along, and when.

Dask keeps no such record, so a plugin of the scheduler does. Sizes are those that Dask measures of results.
P2P keeps its rows in files that Dask doesn't count: of the transfers that had finished, each worker is taken
to hold the same share.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

from dask.utils import key_split
from distributed import Client, Scheduler, SchedulerPlugin

NAME = "benchmark-executions"
TRANSFER = "shuffle-transfer"


class Executions(SchedulerPlugin):
    """Follows every task of a scheduler, from one `reset` to the next.

    Args:
        partition_bytes: of one transfer of a P2P shuffle.
    """

    name = NAME

    def __init__(self, partition_bytes: int):
        self.partition_bytes = partition_bytes
        self.reset()

    async def start(self, scheduler: Scheduler) -> None:
        """Remember the scheduler."""
        self.scheduler = scheduler

    def reset(self) -> None:
        """Forget what was counted."""
        self.seen: set[Any] = set()
        self.runs: Counter[Any] = Counter()
        self.bytes: dict[Any, int] = {}
        self.transfers_at_loss = 0
        self.workers_at_loss = 1
        self.lost_bytes = 0
        self.lost_results = 0
        self.left: list[float] = []

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Called by the scheduler when a task changes its state."""
        if finish in ("waiting", "queued", "processing"):
            self.seen.add(key)
        if finish == "memory" and start == "processing":
            self.runs[key] += 1
            task = self.scheduler.tasks.get(key)
            self.bytes[key] = max(0, task.nbytes) if task is not None else 0
        elif start == "memory" and "worker" in str(kwargs.get("stimulus_id", "")):
            self.lost_results += 1
            self.lost_bytes += self.bytes.get(key, 0)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Called by the scheduler when a worker is gone."""
        if not self.left:
            self.transfers_at_loss = sum(1 for key in self.runs if key_split(key) == TRANSFER)
            self.workers_at_loss = len(scheduler.workers) + 1
        self.left.append(time.time())

    def figures(self) -> dict[str, Any]:
        """Return what was counted.

        Returns:
            ``tasks`` there are and ``done`` at least once; ``rerun``: executions beyond the first, by name;
            bytes ``lost`` and ``recomputed``; ``left``: when workers were removed, in seconds since the epoch.
        """
        again: defaultdict[str, int] = defaultdict(int)
        recomputed = 0
        for key, count in self.runs.items():
            if count > 1:
                name = key_split(key)
                again[name] += count - 1
                size = self.partition_bytes if name == TRANSFER else self.bytes.get(key, 0)
                # what a transfer read again is counted with the transfer
                recomputed += 0 if self._p2p and name.startswith("read") else (count - 1) * size
        files = self.transfers_at_loss * self.partition_bytes // self.workers_at_loss
        return {
            "tasks": len(self.seen),
            "done": len(self.runs),
            "executions": self.runs.total(),
            "rerun": dict(again),
            "lost": self.lost_bytes + files,
            "lost_results": self.lost_results,
            "recomputed": recomputed,
            "left": self.left,
        }

    @property
    def _p2p(self) -> bool:
        return any(key_split(key) == TRANSFER for key in self.runs)


def watch(client: Client, partition_bytes: int) -> None:
    """Start to count in the scheduler of a client."""
    client.register_plugin(Executions(partition_bytes))


def reset(client: Client) -> None:
    """Forget what was counted."""
    client.run_on_scheduler(_reset)


def figures(client: Client) -> dict[str, Any]:
    """Return what was counted since the last reset; see `Executions.figures`."""
    return client.run_on_scheduler(_figures)


def _reset(dask_scheduler: Scheduler) -> None:
    dask_scheduler.plugins[NAME].reset()


def _figures(dask_scheduler: Scheduler) -> dict[str, Any]:
    return dask_scheduler.plugins[NAME].figures()
