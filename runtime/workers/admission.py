"""Admission: which attempts may run on a worker, and the flags that stop those that do.

A run has one driver at a time; each has a higher epoch than the one before. An attempt that an older driver sent is
refused, and so is one of a run that is over.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..task import CancelledTask, Task

_CANCELLATIONS_KEPT = 10_000
_RUNS_KEPT = 10_000


@dataclass
class _Run:
    """The highest epoch seen of a run, and whether it is over."""

    epoch: int = 0
    closed: bool = False


class Admission:
    """The attempts of one worker.

    Example:
        >>> admission = Admission()
        >>> admission.fence("r1", 2)
        2
        >>> with admission.enter(Task("r1", 0, 0, 20_000, (), epoch=2)) as flag:
        ...     admission.running(), flag.is_set()
        (['r1/s0-t0#20000'], False)
        >>> admission.counts("r1", epoch=1)
        False
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        #: attempts that run, by run and name; and those that were cancelled before they began
        self._running: dict[tuple[str, str], tuple[int, threading.Event]] = {}
        self._cancelled: OrderedDict[tuple[str, str], None] = OrderedDict()

    @contextmanager
    def enter(self, task: Task) -> Iterator[threading.Event]:
        """Run an attempt within.

        Returns:
            The flag that tells it to stop.

        Raises:
            CancelledTask: it was cancelled before, comes from a driver that was replaced, or its run is over.
        """
        key, flag = (task.run, task.name), threading.Event()
        with self._lock:
            if key in self._cancelled:
                del self._cancelled[key]
                raise CancelledTask(f"task {task.name} of run {task.run} was cancelled")
            run = self._raise(task.run, task.epoch)
            if task.epoch < run.epoch:
                raise CancelledTask(
                    f"task {task.name} of run {task.run} comes from a driver that was replaced"
                )
            if run.closed:
                raise CancelledTask(f"task {task.name} comes after its run {task.run} was over")
            self._running[key] = task.epoch, flag
        try:
            yield flag
        finally:
            with self._lock:
                if self._running.get(key) == (task.epoch, flag):
                    del self._running[key]

    def cancel(self, run: str, names: list[str]) -> None:
        """Stop attempts, by `Task.name`: those that run at their next table, those that come when they begin."""
        with self._lock:
            for key in ((run, name) for name in names):
                if key in self._running:
                    self._running[key][1].set()
                else:
                    self._cancelled[key] = None
            while len(self._cancelled) > _CANCELLATIONS_KEPT:
                self._cancelled.popitem(last=False)

    def fence(self, run: str, epoch: int) -> int:
        """A driver with this epoch has the run now; attempts of older ones stop. A run that was over goes on.

        Returns:
            The highest epoch seen; if it is higher, there is a newer driver.
        """
        with self._lock:
            return self._raise(run, epoch).epoch

    def close(self, run: str, epoch: int | None = None) -> bool:
        """The run is over: what runs stops, what comes is refused, unless a newer driver takes it up.

        Args:
            run: the run's id.
            epoch: of the driver that says so; None is the newest.

        Returns:
            Whether it counts: a driver that was replaced has no say.
        """
        with self._lock:
            known = self._raise(run, epoch or 0)
            if epoch is not None and epoch < known.epoch:
                return False
            known.closed = True
            self._stop(run, known.epoch + 1)
            return True

    def counts(self, run: str, epoch: int | None) -> bool:
        """Whether a driver with this epoch hasn't been replaced, as far as is known here."""
        with self._lock:
            return epoch is None or run not in self._runs or epoch >= self._runs[run].epoch

    def is_over(self, run: str) -> bool:
        """Whether a run was closed here."""
        with self._lock:
            return run in self._runs and self._runs[run].closed

    def running(self) -> list[str]:
        """The attempts that run, as "RUN/NAME", sorted."""
        with self._lock:
            return sorted("/".join(key) for key in self._running)

    def stop(self) -> None:
        """Stop all that runs; the worker is closing."""
        with self._lock:
            for _, flag in self._running.values():
                flag.set()

    def _raise(self, name: str, epoch: int) -> _Run:
        """Note an epoch. The run is then the last to be forgotten."""
        run = self._runs.pop(name, None) or _Run()
        self._runs[name] = run
        while len(self._runs) > _RUNS_KEPT:
            self._runs.popitem(last=False)
        if epoch > run.epoch:
            run.epoch, run.closed = epoch, False
            self._stop(name, epoch)
        return run

    def _stop(self, run: str, below: int) -> None:
        for (name, _), (epoch, flag) in self._running.items():
            if name == run and epoch < below:
                flag.set()
