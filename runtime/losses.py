"""Losses: what each death cost a run: what was lost, what of it was needed, what was made again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: (stage, partition)
Part = tuple[int, int]


@dataclass
class Loss:
    """One loss, and what came of it. Seconds are of the run, or of tasks where it says so.

    Attributes:
        cause: a `scheduler_events.Cause` in words, or "unreadable", "changed".
        what: the worker, node or blocks that were lost.
        detected: when the run learnt of it.
        silent: seconds without a sign of life until then.
        lost, lost_bytes: blocks that were lost with it.
        tasks: attempts that were under way there and begin again.
        minimum: finished partitions that must be made again, by the lineage graph.
        minimum_bytes: of the results that they had.
        rerun, rerun_bytes: partitions that were made again, and the bytes they left.
        rerun_seconds: of the tasks that made them.
        returned: partitions that need not be made again after all, as their blocks came back.
        recovered: when the last of them was there again; None while some is missing.
    """

    cause: str
    what: str
    detected: float
    silent: float = 0.0
    lost: int = 0
    lost_bytes: int = 0
    tasks: int = 0
    minimum: int = 0
    minimum_bytes: int = 0
    rerun: int = 0
    rerun_bytes: int = 0
    rerun_seconds: float = 0.0
    returned: int = 0
    recovered: float | None = None


@dataclass
class Losses:
    """The ledger of a run's losses.

    Attributes:
        all: in the order in which they were noticed.
        backups, backups_won: attempts started beside a slow one, and those of them that were first.
        lost_backup_seconds: that backups ran which weren't first.
        wasted_seconds: of attempts that lost against another one.
        broken_seconds: of attempts that ended with their worker.

    Example:
        >>> losses = Losses()
        >>> loss = losses.begin("died", "node a", now=2.0)
        >>> losses.lose(loss, 1, 800)
        >>> losses.need([((0, 3), 800)])
        >>> losses.made((0, 3), 800, 0.5, now=3.0)
        >>> loss.minimum, loss.rerun, loss.recovered
        (1, 1, 3.0)
    """

    all: list[Loss] = field(default_factory=list)
    backups: int = 0
    backups_won: int = 0
    lost_backup_seconds: float = 0.0
    wasted_seconds: float = 0.0
    broken_seconds: float = 0.0
    _missing: dict[Part, Loss] = field(default_factory=dict)
    _open: dict[int, int] = field(default_factory=dict)

    def begin(self, cause: str, what: str, now: float, silent: float = 0.0) -> Loss:
        """Note a loss."""
        self.all.append(Loss(cause, what, now, silent))
        return self.all[-1]

    def lose(self, loss: Loss, blocks: int, size: int) -> None:
        """Blocks of so many bytes went with it."""
        loss.lost += blocks
        loss.lost_bytes += size

    def need(self, parts: Iterable[tuple[Part, int]]) -> None:
        """Finished partitions, with the bytes they had, must be made again; the latest loss is the cause."""
        for part, size in parts:
            if part in self._missing:
                continue
            if not self.all:
                self.begin("unreadable", "blocks", 0.0)
            loss = self.all[-1]
            self._missing[part] = loss
            loss.minimum += 1
            loss.minimum_bytes += size
            loss.recovered = None
            self._open[id(loss)] = self._open.get(id(loss), 0) + 1

    def made(self, part: Part, size: int, seconds: float, now: float) -> None:
        """A partition was computed; nothing happens if it wasn't missing."""
        loss = self._end(part, now)
        if loss is not None:
            loss.rerun += 1
            loss.rerun_bytes += size
            loss.rerun_seconds += seconds

    def returned(self, part: Part, now: float) -> None:
        """A partition's block was found again; nothing happens if it wasn't missing."""
        loss = self._end(part, now)
        if loss is not None:
            loss.returned += 1

    @property
    def missing(self) -> list[Part]:
        """Finished partitions that wait to be made again."""
        return list(self._missing)

    def _end(self, part: Part, now: float) -> Loss | None:
        loss = self._missing.pop(part, None)
        if loss is not None:
            self._open[id(loss)] -= 1
            if not self._open[id(loss)]:
                loss.recovered = now
        return loss
