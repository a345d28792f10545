"""Health: what follows from the reports about a worker. Rules only: no clock, no sockets.

Source: the split into a suspicion and a verdict follows Chandra and Toueg, "Unreliable Failure Detectors for Reliable
Distributed Systems", J. ACM 43(2), 1996; a verdict may be wrong there, so a worker that is declared dead is fenced.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What the rules say about a worker."""

    #: nothing is known against it
    WELL = "well"
    #: its beacon is silent: ask the worker itself
    DOUBTFUL = "doubtful"
    #: its process is stopped, and has been for too long
    HUNG = "hung"
    #: neither beacon nor worker could be heard for too long
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Rules:
    """How long is too long, in seconds.

    Attributes:
        hung: without a sign of life from a stopped process.
        silent: without a line from a beacon that had been heard.
        answer: for the worker itself to answer, asked when its beacon is silent.
        gap: between two turns of the watcher; more says that the watcher itself was held up.
    """

    hung: float = 2.5
    silent: float = 2.5
    answer: float = 1.0
    gap: float = 1.0


@dataclass(frozen=True)
class Report:
    """One line of a beacon.

    Attributes:
        state: letter of the process's state; "T" is stopped.
        idle: seconds since the process was last seen alive.
    """

    state: str
    idle: float

    @classmethod
    def parse(cls, line: bytes) -> Report | None:
        """Read a line as the beacon sends it; None if it isn't a report."""
        try:
            state, idle = line.decode("ascii").split()
            return cls(state, float(idle)) if len(state) == 1 else None
        except ValueError:
            return None


class WorkerHealth:
    """What is known of one worker.

    Args:
        now: seconds on a clock that only goes forward, as in all methods.
        rules: how long is too long.
    """

    def __init__(self, now: float, rules: Rules | None = None):
        self._rules = rules or Rules()
        self._since = now
        #: when the beacon was last heard; None before, and once it turned out to be dead alone
        self._heard: float | None = None
        self._report: Report | None = None
        self._unanswered = False

    def heard(self, now: float, report: Report) -> None:
        """The beacon sent a line."""
        self._heard, self._report, self._unanswered = now, report, False

    def answered(self) -> None:
        """The worker itself answered: its beacon is gone, and says nothing until it is heard again."""
        self._heard, self._report, self._unanswered = None, None, False

    def unanswered(self) -> None:
        """The worker itself was asked, and did not answer in time."""
        self._unanswered = True

    def restart(self, now: float) -> None:
        """The watcher was held up: what it didn't hear meanwhile says nothing about the worker."""
        self._since, self._report, self._unanswered = now, None, False

    def silence(self, now: float) -> float:
        """Seconds since the last sign of life of the worker, as far as is known."""
        if self._heard is None:
            return 0.0
        if self._report is not None and self._report.state == "T":
            return now - self._heard + self._report.idle
        return now - self._heard

    def judge(self, now: float) -> Verdict:
        """Say what follows now."""
        if self._heard is None:
            return Verdict.WELL
        quiet = now - max(self._heard, self._since)
        if quiet >= self._rules.silent and self._unanswered:
            return Verdict.UNREACHABLE
        if quiet >= self._rules.silent - self._rules.answer:
            return Verdict.DOUBTFUL
        report = self._report
        if (
            report is not None
            and report.state == "T"
            and self._rules.hung <= min(report.idle, now - self._since)
        ):
            return Verdict.HUNG
        return Verdict.WELL


class Turns:
    """Notices that the watcher itself was held up.

    Args:
        now: when it begins.
        gap: seconds between two turns that say so.
    """

    def __init__(self, now: float, gap: float):
        self._last, self._gap = now, gap

    def late(self, now: float) -> bool:
        """Take a turn; say whether the one before is too long ago."""
        last, self._last = self._last, now
        return now - last > self._gap
