"""Direct: what objectives share that bring a program of their own instead of taking an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import HeadwaterError, ParameterError
from ..backend import Array, array_namespace, to_host

if TYPE_CHECKING:
    from ..training.program import Settings


def refuse_optimizer(label: str, settings: Settings) -> None:
    """Raise if settings were given that only training by minibatches takes, to an algorithm that has none.

    Raises:
        ParameterError: there is an optimizer, a number of epochs or steps, or early stopping.
    """
    if settings.optimizer is not None:
        name = getattr(settings.optimizer, "name", type(settings.optimizer).__name__)
        raise ParameterError(
            f"{label} has an algorithm of its own, and got the optimizer {name}. Leave optimizer= out."
        )
    refuse_epochs(label, settings)


def refuse_epochs(label: str, settings: Settings) -> None:
    """Raise if an algorithm that ends by itself was told when to stop.

    Raises:
        ParameterError: there is a number of epochs or steps, or early stopping.
    """
    for name in ("epochs", "steps", "early_stopping"):
        if (value := getattr(settings, name)) is not None:
            raise ParameterError(
                f"{label} takes all rows at each step and ends by itself, and got {name}={value!r}. Leave it out; "
                "the algorithm's own limit is among its arguments."
            )


def whole(label: str, name: str, value: Any, low: int) -> int:
    """Return a whole number that is at least ``low``.

    Raises:
        ParameterError: it isn't.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ParameterError(f"{label}({name}={value!r}): give a whole number, {low} or more.")
    return int(value)


def at_least(label: str, name: str, value: Any, low: float) -> float:
    """Return a finite number that is at least ``low``.

    Raises:
        ParameterError: it isn't.
    """
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not low <= value < np.inf:
        raise ParameterError(f"{label}({name}={value!r}): give a number, {low:g} or more.")
    return float(value)


def check_rows(label: str, name: str, needed: int, rows: int) -> None:
    """Raise if there are fewer training rows than an algorithm needs.

    Raises:
        ParameterError: there are.
    """
    if rows < needed:
        raise ParameterError(
            f"{label}({name}={needed}): there are only {rows} training rows. Give at most that."
        )


def check_finite(label: str, *arrays: np.ndarray) -> None:
    """Raise if a sum over the training rows isn't finite.

    Raises:
        HeadwaterError: there is a NaN or an infinity.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise HeadwaterError(
            f"{label}: the features have NaN or infinite values, or overflow. "
            "Filter such rows, or impute them (hw.prep.Impute), and scale the features."
        )


def put_rows(out: np.ndarray, numbers: np.ndarray, first: int, x: Array) -> None:
    """Copy the chosen ones of a block's rows to their places; a sum over shards then holds all of them.

    Args:
        out: shape (chosen, d), zero where nothing was copied yet.
        numbers: shape (chosen,), ascending numbers of the chosen rows among all training rows.
        first: number of the block's first row.
        x: the block, shape (rows, d).
    """
    low, high = np.searchsorted(numbers, [first, first + x.shape[0]])
    if high > low:
        rows = numbers[low:high] - first
        out[low:high] = to_host(x[rows if isinstance(x, np.ndarray) else array_namespace().asarray(rows)])


def times(x: Array, weight: Array | None) -> Array:
    """Return rows times their weights, or the rows themselves if they have none."""
    return x if weight is None else x * weight[:, None].astype(x.dtype)


def on_host(value: Any) -> Any:
    """Return a state, or sums, with all arrays as NumPy's; the update of a small state is no work for a device."""
    if isinstance(value, Mapping):
        return {name: on_host(item) for name, item in value.items()}
    return to_host(value) if hasattr(value, "__cuda_array_interface__") else value
