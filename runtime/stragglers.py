"""Stragglers: which running attempt deserves a backup, now that a thread has nothing else to do. Pure.

An attempt is backed up if what it still needs is clearly longer than a fresh copy would take, as in
LATE, and not because it merely runs longer than others. Both times are estimated from finished tasks
of the same stage, by the bytes they read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

#: a backup must be expected to end in so much less time than the attempt it backs up
ADVANTAGE = 1.5
#: seconds over which it is looked how fast an attempt is at most
MOST_WINDOW = 8.0
#: an attempt that has stalled is taken to need so many times what a fresh copy would
STALLED = 10.0
#: seconds that a backup must save at least
LEAST_GAIN = 0.5
#: backups that a stage may have in vain whatever they cost, and the share of all task time for those beyond
FREE_BACKUPS = 2
EXTRA_SHARE = 0.05
#: finished tasks, the last ones, that tell how long one takes
_LATELY = 200


@dataclass(frozen=True)
class RunningAttempt:
    """What is known of an attempt that runs.

    Attributes:
        elapsed: seconds since it was launched.
        ahead: seconds of work that its worker was to do before it, as expected.
        fresh: seconds that a copy would take on a worker as others are.
        share: of its input that it has read, 0 to 1.
        rate: share that it reads in a second, of late; None if it is too early to tell.
    """

    elapsed: float
    ahead: float
    fresh: float
    share: float
    rate: float | None = None

    @property
    def left(self) -> float:
        """Seconds that it still needs, estimated; 0 if there is no reason to think that it is late."""
        if self.share > 0.02:
            left = max(0.0, self.elapsed - self.ahead) * (1 - self.share) / self.share
            if self.rate is None:
                return left
            slowest = (1 - self.share) / (STALLED * self.fresh)
            return max(left, (1 - self.share) / max(self.rate, slowest, 1e-9))
        late = self.elapsed - ADVANTAGE * (self.ahead + self.fresh)
        return max(self.elapsed, 2 * ADVANTAGE * self.fresh) if late > LEAST_GAIN else 0.0


def recent_rate(samples: Collection[tuple[float, float]], now: float, fresh: float) -> float | None:
    """Return the share that an attempt reads in a second, over a while long enough to tell.

    Args:
        samples: (time, share) as it was reported, oldest first.
        now: the time.
        fresh: seconds that a copy would take; over so long, a healthy attempt must have got somewhere.

    Example:
        >>> recent_rate([(0.0, 0.5), (1.0, 0.5), (2.0, 0.6)], now=2.0, fresh=2.0)
        0.05
        >>> recent_rate([(1.0, 0.5)], now=2.0, fresh=2.0) is None
        True
    """
    window = max(1.0, min(fresh, MOST_WINDOW))
    before = [(time, share) for time, share in samples if time <= now - window]
    if not before:
        return None
    time, share = before[-1]
    latest = max(share for _, share in samples)
    return round((latest - share) / (now - time), 9)


def unit_seconds(finished: Sequence[tuple[float, float]], tasks: int) -> float | None:
    """Return the seconds a unit of weight takes, or None while too few tasks are finished to tell.

    Args:
        finished: weight and seconds of each finished task of the stage.
        tasks: how many the stage has.

    Example:
        >>> unit_seconds([(10, 1.0), (10, 1.2), (20, 2.0)], tasks=4)
        0.1
        >>> unit_seconds([(10, 1.0)], tasks=4) is None
        True
    """
    if len(finished) < min(3, max(1, tasks // 2)):
        return None
    return median(seconds / weight for weight, seconds in finished[-_LATELY:])


def choose_backup(running: Sequence[RunningAttempt], started: int, spent: float, total: float) -> int | None:
    """Choose the attempt whose backup would save most.

    Args:
        running: attempts of one stage without a backup.
        started: backups of the stage that lost, or run still; one that was first has cost nothing.
        spent: seconds that such backups of the run have taken or are expected to.
        total: seconds of all tasks of the run so far.

    Returns:
        Its index, or None.

    Source:
        M. Zaharia and others, "Improving MapReduce Performance in Heterogeneous Environments" (2008),
        section 4; J. Dean and S. Ghemawat, "MapReduce" (2004), section 3.6.
    """
    best, saved = None, 0.0
    for index, attempt in enumerate(running):
        gain = attempt.left - attempt.fresh
        worth = attempt.left > ADVANTAGE * attempt.fresh and gain > LEAST_GAIN
        cheap = started < FREE_BACKUPS or spent + attempt.fresh <= EXTRA_SHARE * total
        if worth and cheap and gain > saved:
            best, saved = index, gain
    return best
