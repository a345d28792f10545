"""Spaces: from which values of a hyperparameter trials are drawn; public as ``headwater.space``.

Draws are counter-based: trial i's value of a parameter depends on the seed, on i and on the parameter's name alone. So
more trials, or another parameter, leave those that were there as they are.

Example:
    >>> import headwater as hw
    >>> space = {"lr": hw.space.log_uniform(1e-4, 1e-1), "depth": hw.space.integer(1, 8)}
    >>> list(draw(space, seed=7, trial=0)) == ["lr", "depth"]
    True
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ParameterError, TypeMismatchError
from ..ops.training.sampling import generator

__all__ = ["Range", "choice", "integer", "log_uniform", "uniform"]

#: most values of a range of integers that a grid goes through
MOST_GRID_VALUES = 1000


class Range:
    """The values that a hyperparameter may have."""

    def draw(self, rng: np.random.Generator) -> Any:
        """Return one of them at random."""
        raise NotImplementedError

    def values(self) -> tuple[Any, ...] | None:
        """Return all of them; None if they are too many for a grid."""
        return None


@dataclass(frozen=True)
class choice(Range):
    """One of some values, each as likely. A plain list in a space means the same.

    Args:
        options: of any kind, as ``[16, 64, 256]`` or optimizers.

    Example:
        >>> choice(["adam", "sgd"]).values()
        ('adam', 'sgd')
    """

    options: tuple[Any, ...]

    def __init__(self, options: Sequence[Any] | np.ndarray):
        if isinstance(options, str | bytes) or not isinstance(options, Sequence | np.ndarray):
            raise TypeMismatchError(
                f"space.choice({options!r}): give a list of values, as choice([1, 2, 4])."
            )
        given = options.tolist() if isinstance(options, np.ndarray) else options
        if not len(given):
            raise ParameterError(
                "space.choice([]): there is nothing to choose from. Give at least one value."
            )
        object.__setattr__(self, "options", tuple(given))

    def draw(self, rng: np.random.Generator) -> Any:
        return self.options[int(rng.integers(len(self.options)))]

    def values(self) -> tuple[Any, ...]:
        return self.options


@dataclass(frozen=True)
class uniform(Range):
    """A number between two bounds, each as likely.

    Args:
        low, high: the bounds, low < high.

    Example:
        >>> 0.0 <= uniform(0.0, 0.5).draw(generator(0)) < 0.5
        True
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _bounds(self, "uniform")

    def draw(self, rng: np.random.Generator) -> float:
        return min(self.low + (self.high - self.low) * float(rng.random()), self.high)


@dataclass(frozen=True)
class log_uniform(Range):
    """A number between two bounds whose logarithm is uniform: as likely between 0.001 and 0.01 as up to 0.1.

    For what acts by its order of magnitude, as learning rates and penalties.

    Args:
        low, high: the bounds, 0 < low < high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _bounds(self, "log_uniform")
        if self.low <= 0:
            raise ParameterError(
                f"space.log_uniform({self.low!r}, {self.high!r}): 0 has no logarithm; give bounds above it."
            )

    def draw(self, rng: np.random.Generator) -> float:
        drawn = self.low * math.exp(math.log(self.high / self.low) * float(rng.random()))
        return min(max(drawn, self.low), self.high)


@dataclass(frozen=True)
class integer(Range):
    """A whole number from low to high, both included.

    Args:
        low, high: the bounds, low <= high.
        log: as likely from 10 to 100 as from 100 to 1000; for sizes. The bounds are above 0 then.

    Example:
        >>> integer(2, 4).values()
        (2, 3, 4)
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        bounds = (self.low, self.high)
        wrong = [b for b in bounds if isinstance(b, bool) or not isinstance(b, int | np.integer)]
        if wrong or self.low > self.high:
            raise ParameterError(
                f"space.integer({self.low!r}, {self.high!r}): give two whole numbers, the lower first."
            )
        if self.log and self.low < 1:
            raise ParameterError(
                f"space.integer({self.low}, {self.high}, log=True): give bounds of 1 or more."
            )

    def draw(self, rng: np.random.Generator) -> int:
        if not self.log:
            return int(rng.integers(self.low, self.high, endpoint=True))
        drawn = self.low * math.exp(math.log((self.high + 1) / self.low) * float(rng.random()))
        return min(max(int(drawn), self.low), self.high)

    def values(self) -> tuple[int, ...] | None:
        few = self.high - self.low < MOST_GRID_VALUES
        return tuple(range(self.low, self.high + 1)) if few else None


def draw(space: Mapping[str, Range], seed: int, trial: int) -> dict[str, Any]:
    """Return the values of one trial, by name.

    Args:
        space: name to range.
        seed: of the search.
        trial: its number, from 0.
    """
    return {name: values.draw(generator(seed, "search", trial, name)) for name, values in space.items()}


def checked_space(space: Any) -> dict[str, Range]:
    """Return a space with ranges in the place of plain lists.

    Raises:
        TypeMismatchError, ParameterError: it isn't a space, or is empty.
    """
    if not isinstance(space, Mapping):
        raise TypeMismatchError(
            f"search(space={space!r}): give a dict of parameter to values, as "
            "{'lr': hw.space.log_uniform(1e-4, 1e-1), 'l2': [0.0, 1e-3]}."
        )
    if not space:
        raise ParameterError("search(space={}): there is nothing to search. Give at least one parameter.")
    found = {}
    for name, values in space.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ParameterError(f"search(space=…): {name!r} can't be the name of an argument.")
        if not isinstance(values, Range | list | tuple | np.ndarray):
            hint = f"write [{values!r}] for this value alone" if np.isscalar(values) else "give a list"
            raise TypeMismatchError(
                f"search(space={{{name!r}: {values!r}}}): {hint}, or one of hw.space.choice, uniform, log_uniform "
                "and integer."
            )
        found[name] = values if isinstance(values, Range) else choice(values)
    return found


def _bounds(values: uniform | log_uniform, name: str) -> None:
    low, high = values.low, values.high
    numbers = all(isinstance(b, int | float | np.number) and not isinstance(b, bool) for b in (low, high))
    if not numbers or not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise ParameterError(f"space.{name}({low!r}, {high!r}): give two finite numbers, the lower first.")
    object.__setattr__(values, "low", float(low))
    object.__setattr__(values, "high", float(high))
