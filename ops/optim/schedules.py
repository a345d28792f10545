"""Schedules: learning rates as functions of the step, counted from 0; small records that are called.

Their classes have lower-case names because that is how they are written: ``adam(cosine(0.001, steps=1000))``. Any
function of the step serves as well.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ...arguments import whole
from .checks import Rate, plain, rate, rate_at, real


class Schedule:
    """A learning rate that depends on the step alone."""

    def __call__(self, step: int) -> float:
        """Return the rate at a step, counted from 0."""
        raise NotImplementedError

    def parameters(self) -> Any:
        """Return what decides its values, for the lineage key."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return (type(self).__name__, *(plain(getattr(self, field.name)) for field in fields))

    def _rates(self, *names: str) -> None:
        for name in names:
            object.__setattr__(self, name, real(getattr(self, name), type(self).__name__, name))

    def _whole(self, name: str, least: int) -> None:
        object.__setattr__(self, name, whole(getattr(self, name), type(self).__name__, name, least))


@dataclass(frozen=True)
class constant(Schedule):
    """The same rate at every step.

    Args:
        value: the rate.
    """

    value: float

    def __post_init__(self) -> None:
        self._rates("value")

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class linear(Schedule):
    """From ``start`` to ``end`` in a straight line; then ``end``.

    Args:
        start: at step 0.
        end: from step ``steps`` on.
        steps: at least 1.

    Example:
        >>> schedule = linear(1.0, 0.0, steps=4)
        >>> [schedule(step) for step in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        self._rates("start", "end")
        self._whole("steps", 1)

    def __call__(self, step: int) -> float:
        return _between(self.start, self.end, min(step / self.steps, 1.0))


@dataclass(frozen=True)
class cosine(Schedule):
    """From ``start`` to ``end`` along half a cosine; then ``end``.

    Args:
        start: at step 0.
        steps: at least 1.
        end: from step ``steps`` on.

    Source: I. Loshchilov and F. Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017; no restarts.

    Example:
        >>> schedule = cosine(1.0, steps=100)
        >>> [round(schedule(step), 6) for step in (0, 50, 100, 101)]
        [1.0, 0.5, 0.0, 0.0]
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        self._rates("start", "end")
        self._whole("steps", 1)

    def __call__(self, step: int) -> float:
        return _along_cosine(self.start, self.end, min(step / self.steps, 1.0))


@dataclass(frozen=True)
class exponential(Schedule):
    """``start * rate ** (step / steps)``.

    Args:
        start: at step 0.
        rate: what remains after ``steps`` steps, above 0 and at most 1.
        steps: at least 1.

    Example:
        >>> exponential(1.0, 0.5, steps=10)(20)
        0.25
    """

    start: float
    rate: float
    steps: int = 1

    def __post_init__(self) -> None:
        self._rates("start")
        object.__setattr__(self, "rate", real(self.rate, "exponential", "rate", above=0.0, most=1.0))
        self._whole("steps", 1)

    def __call__(self, step: int) -> float:
        return self.start * self.rate ** (step / self.steps)


@dataclass(frozen=True)
class step(Schedule):
    """Multiplied by ``factor`` after every so many steps.

    Args:
        start: at step 0.
        every: at least 1.
        factor: above 0 and at most 1.

    Example:
        >>> schedule = step(1.0, every=10, factor=0.5)
        >>> [schedule(t) for t in (0, 9, 10, 25)]
        [1.0, 1.0, 0.5, 0.25]
    """

    start: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        self._rates("start")
        self._whole("every", 1)
        object.__setattr__(self, "factor", real(self.factor, "step", "factor", above=0.0, most=1.0))

    def __call__(self, step: int) -> float:
        return self.start * self.factor ** (step // self.every)


@dataclass(frozen=True)
class polynomial(Schedule):
    """From ``start`` to ``end`` as a power of the way that is left; then ``end``.

    Args:
        start: at step 0.
        steps: at least 1.
        end: from step ``steps`` on.
        power: above 0; 1 is a straight line.

    Example:
        >>> polynomial(1.0, steps=10, power=2.0)(5)
        0.25
    """

    start: float
    steps: int
    end: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        self._rates("start", "end")
        self._whole("steps", 1)
        object.__setattr__(self, "power", real(self.power, "polynomial", "power", above=0.0))

    def __call__(self, step: int) -> float:
        left = 1.0 - min(step / self.steps, 1.0)
        return self.end + (self.start - self.end) * left**self.power


@dataclass(frozen=True)
class one_cycle(Schedule):
    """Up to a peak and down to almost nothing, each along half a cosine; as ``torch.optim.lr_scheduler.OneCycleLR``.

    Args:
        peak: the highest rate.
        steps: of the whole cycle, at least 2; the last of them has the lowest rate, and later ones keep it.
        rise: the part of the steps that goes up, above 0 and below 1.
        start_divisor: it starts at ``peak / start_divisor``.
        end_divisor: it ends at ``peak / start_divisor / end_divisor``.

    Source: L. Smith and N. Topin, Super-Convergence, arXiv:1708.07120.
    """

    peak: float
    steps: int
    rise: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4

    def __post_init__(self) -> None:
        self._rates("peak")
        self._whole("steps", 2)
        object.__setattr__(self, "rise", real(self.rise, "one_cycle", "rise", above=0.0, below=1.0))
        for name in ("start_divisor", "end_divisor"):
            object.__setattr__(self, name, real(getattr(self, name), "one_cycle", name, least=1.0))

    def __call__(self, step: int) -> float:
        low = self.peak / self.start_divisor
        top = max(self.rise * self.steps - 1, 0.0)
        if step <= top and top > 0.0:
            return _along_cosine(low, self.peak, step / top)
        way = min((step - top) / (self.steps - 1 - top), 1.0)
        return _along_cosine(self.peak, low / self.end_divisor, way)


@dataclass(frozen=True)
class warmup(Schedule):
    """A straight line up to where another schedule begins, and then that schedule.

    Args:
        steps: of the line, at least 1.
        then: a rate, or a schedule, which counts its steps from the end of the line.
        start: at step 0.

    Example:
        >>> schedule = warmup(4, then=cosine(1.0, steps=100))
        >>> [schedule(step) for step in (0, 1, 4)]
        [0.0, 0.25, 1.0]
    """

    steps: int
    then: Rate
    start: float = 0.0

    def __post_init__(self) -> None:
        self._rates("start")
        self._whole("steps", 1)
        object.__setattr__(self, "then", rate(self.then, "warmup", "then"))

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return rate_at(self.then, step - self.steps)
        return _between(self.start, rate_at(self.then, 0), step / self.steps)


def _between(start: float, end: float, way: float) -> float:
    return start + (end - start) * way if way < 1.0 else end


def _along_cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * way)) / 2.0 if way < 1.0 else end
