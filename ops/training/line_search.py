"""Line search: how far to go along a direction, as a state machine that is told one evaluation at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

#: sufficient decrease, and how flat the slope must become
DECREASE, CURVATURE = 1e-4, 0.9
#: evaluations after which the best length found so far is taken
MOST_TRIES = 25


@dataclass(frozen=True)
class Point:
    """An evaluation along the line: the length, the loss there, and its slope along the direction."""

    length: float
    loss: float
    slope: float


@dataclass(frozen=True)
class LineSearch:
    """Where a search for the strong Wolfe conditions stands.

    Attributes:
        start: the point at length 0.
        length: the next to evaluate.
        noise: differences of losses below this are rounding.
        low: the best point known, one end of the bracket.
        high: the other end; None until there is one.
        tries: evaluations so far.
        verdict: "try" the length; "accept" the last evaluation; take the "low" point; or "fail".

    Example:
        >>> search = LineSearch(Point(0.0, 9.0, -6.0), 1.0)   # of (x - 3) ** 2 from 0 along 1
        >>> while search.verdict == "try":
        ...     t = search.length
        ...     search = search.told((t - 3) ** 2, 2 * (t - 3))
        >>> search.verdict, search.low.length
        ('accept', 1.0)

    Source: Nocedal and Wright, Numerical Optimization (2006), algorithms 3.5 and 3.6; where losses differ by rounding
    alone, the approximate Wolfe conditions of Hager and Zhang (2005).
    """

    start: Point
    length: float
    noise: float = 0.0
    low: Point | None = None
    high: Point | None = None
    tries: int = 0
    verdict: Literal["try", "accept", "low", "fail"] = "try"

    def told(self, loss: float, slope: float) -> LineSearch:
        """Return the search after the evaluation of its length."""
        point, start = Point(self.length, loss, slope), self.start
        low = self.low or start
        search = replace(self, tries=self.tries + 1, low=low)
        finite = math.isfinite(loss) and math.isfinite(slope)
        if finite and self._is_good(point):
            return replace(search, low=point, verdict="accept")
        falls = finite and loss <= start.loss + DECREASE * point.length * start.slope and loss < low.loss
        if not falls:
            search = replace(search, high=point)
        elif self.high is not None:
            high = low if slope * (self.high.length - low.length) >= 0 else self.high
            search = replace(search, low=point, high=high)
        elif slope >= 0:
            search = replace(search, low=point, high=low)
        else:  # still falling, and no bracket yet
            search = replace(search, low=point)
        if search.tries >= MOST_TRIES:
            return search._end()
        return search._next(low)

    def _is_good(self, point: Point) -> bool:
        start = self.start
        if abs(point.slope) <= -CURVATURE * start.slope:
            if point.loss <= start.loss + DECREASE * point.length * start.slope:
                return True
            return (
                abs(point.loss - start.loss) <= self.noise and point.slope <= (2 * DECREASE - 1) * start.slope
            )
        return False

    def _end(self) -> LineSearch:
        assert self.low is not None
        return replace(self, verdict="low" if self.low.length > 0 else "fail")

    def _next(self, before: Point) -> LineSearch:
        low, high = self.low, self.high
        assert low is not None
        if high is None:
            gap = low.length - before.length
            length = min(max(cubic_minimum(before, low), low.length + gap), low.length + 4 * gap)
            return replace(self, length=length if math.isfinite(length) else low.length + 2 * gap)
        gap = high.length - low.length
        if abs(gap) <= 1e-12 * max(abs(low.length), abs(high.length)):
            return self._end()
        length = cubic_minimum(low, high)
        share = (length - low.length) / gap
        if not math.isfinite(high.loss) or not math.isfinite(share):
            share = 0.1 if not math.isfinite(high.loss) else 0.5
        elif not 0.1 <= share <= 0.9 or self.tries % 4 == 3:
            share = 0.5 if self.tries % 4 == 3 else min(max(share, 0.1), 0.9)
        return replace(self, length=low.length + share * gap)


def cubic_minimum(a: Point, b: Point) -> float:
    """Return the length at which the cubic through two points and their slopes is least; NaN if there is none.

    Example:
        >>> cubic_minimum(Point(0.0, 9.0, -6.0), Point(4.0, 1.0, 2.0))
        3.0
    """
    gap = b.length - a.length
    if gap == 0 or not all(map(math.isfinite, (a.loss, b.loss, a.slope, b.slope))):
        return math.nan
    d1 = a.slope + b.slope - 3 * (b.loss - a.loss) / gap
    square = d1 * d1 - a.slope * b.slope
    if square < 0:
        return math.nan
    d2 = math.copysign(math.sqrt(square), gap)
    denominator = b.slope - a.slope + 2 * d2
    return b.length - gap * (b.slope + d2 - d1) / denominator if denominator else math.nan
