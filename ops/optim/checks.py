"""Checks of what optimizers, schedules and solvers are given, and how one is written out again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ParameterError

#: a number, or a function of the step (counted from 0) that gives one
Rate = float | Callable[[int], float]


def real(
    value: Any,
    where: str,
    option: str,
    *,
    least: float = 0.0,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Return a finite number as a Python float, so that float32 arrays stay float32.

    Args:
        value: what arrived; NumPy's numbers are taken too.
        where: the function, for errors.
        option: its parameter.
        least, above: the smallest that is allowed; what it must be greater than.
        most, below: the largest that is allowed; what it must be less than.

    Raises:
        ParameterError: another value.

    Example:
        >>> real(1, "clip_by_value", "limit", above=0)
        1.0
    """
    number = None
    if not isinstance(value, str | bytes | bool) and hasattr(value, "__float__"):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = None
    if (
        number is None
        or not math.isfinite(number)
        or number < least
        or (above is not None and number <= above)
        or (below is not None and number >= below)
        or (most is not None and number > most)
    ):
        low = f"above {above:g}" if above is not None else f"{least:g} or more" if least > -math.inf else ""
        high = f"below {below:g}" if below is not None else f"at most {most:g}" if most is not None else ""
        bounds = " and ".join(filter(None, (low, high)))
        raise ParameterError(f"{where}({option}={value!r}): give a number{f', {bounds}' if bounds else ''}.")
    return number


def pair(value: Any, where: str, option: str) -> tuple[float, float]:
    """Return two decay rates, each at least 0 and below 1.

    Raises:
        ParameterError: something else.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ParameterError(f"{where}({option}={value!r}): give two numbers, as (0.9, 0.999).")
    first, second = (real(v, where, f"{option}[{i}]", below=1.0) for i, v in enumerate(value))
    return first, second


def rate(value: Any, where: str, option: str = "lr") -> Rate:
    """Return a learning rate: a number of 0 or more, or a schedule, whose value at step 0 is checked.

    Raises:
        ParameterError: neither.
    """
    if isinstance(value, type) or not callable(value):
        if not isinstance(value, str | bytes | bool) and hasattr(value, "__float__"):
            return real(value, where, option)
        raise ParameterError(
            f"{where}({option}={value!r}): give a number, as 0.001, or a schedule, "
            "as hw.optim.cosine(0.001, steps=1000)."
        )
    rate_at(value, 0)
    return value


def rate_at(rate: Rate, step: int) -> float:
    """Return a learning rate at a step, as a Python float.

    Raises:
        ParameterError: the schedule gives something else than a number of 0 or more.
    """
    return real(rate(step), f"{_named(rate)} at step {step}", "lr") if callable(rate) else rate


def written(name: str, options: Mapping[str, Any]) -> str:
    """Return the call that makes something: ``adam(lr=0.001, …)``."""
    return f"{name}({', '.join(f'{option}={_shown(value)}' for option, value in options.items())})"


def plain(value: Any) -> Any:
    """Return a value for a lineage key: what has ``parameters()`` of its own is replaced by them."""
    if isinstance(value, tuple | list):
        return tuple(plain(v) for v in value)
    if hasattr(value, "parameters") and not isinstance(value, type):
        return value.parameters()
    return value


def _shown(value: Any) -> str:
    return _named(value) if callable(value) else repr(value)


def _named(function: Any) -> str:
    return getattr(function, "__name__", None) or repr(function)
