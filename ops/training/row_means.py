"""Row means: an objective called on a batch, its results checked, and added up as means times rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import HeadwaterError, ParameterError, TypeMismatchError, UserFunctionError, did_you_mean
from ..backend import Array
from ..objectives.losses import sum_all
from ..objectives.objective import Objective
from ..user_functions import own_traceback
from .program import Batch, DataInfo, Tree


@dataclass(frozen=True)
class Means:
    """Where an objective is called from.

    Attributes:
        params: what it is called with.
        objective: what is called.
        shard: index, for errors.
        batch: number, for errors.
    """

    params: Tree
    objective: Objective
    shard: int
    batch: int

    @property
    def label(self) -> str:
        """What errors call the function."""
        return f"{self.objective.label}.value_and_grad"


def weight_of(batch: Batch) -> float:
    """Return how much a batch counts: its rows, or the sum of their weights."""
    weight = batch.get("weight")
    if weight is None:
        return float(len(next(iter(batch.values()))))
    total = sum_all(weight)
    if not total >= 0 or (len(weight) and float(weight.min()) < 0):
        raise ParameterError(
            f"a weight is negative or NaN (a batch's smallest is {float(weight.min()):g}). Weights are 0 or more."
        )
    return total


def first_parameters(objective: Objective, rng: np.random.Generator, info: DataInfo) -> Tree:
    """Call `Objective.init`, and tell what goes wrong in it as the user's.

    Raises:
        UserFunctionError: it raised.
    """
    try:
        return objective.init(rng, info)
    except HeadwaterError:
        raise
    except (Exception, SystemExit) as error:
        raise UserFunctionError(
            f"{objective.label}.init raised {type(error).__name__}: {error}\n{own_traceback(error)}"
        ) from error


def add_value_and_grad(
    means: Means, batch: Batch, rng: np.random.Generator, totals: np.ndarray
) -> tuple[Tree, float] | None:
    """Call `Objective.value_and_grad`, and add weight, loss and metrics to ``totals``.

    Args:
        means: where from.
        batch: at least one row.
        rng: for the objective.
        totals: weight, loss times weight, metrics times weight; is added to.

    Returns:
        The gradients and the batch's weight; None if that is 0, and nothing was called.
    """
    weight = weight_of(batch)
    if not weight:
        return None
    objective = means.objective
    result = _call(means, objective.value_and_grad, batch, rng)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        got = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        raise UserFunctionError(
            f"{means.label} returned {got}. Return (mean loss, gradients, metrics), the metrics as a dict."
        )
    _add(means, totals, weight, result[0], result[2] if len(result) == 3 else {})
    return result[1], weight


def add_loss(means: Means, batch: Batch, rng: np.random.Generator, totals: np.ndarray) -> None:
    """Call `Objective.loss`, and add weight, loss and metrics to ``totals``."""
    weight = weight_of(batch)
    if weight:
        value, metrics = _call(means, means.objective.loss, batch, rng)
        _add(means, totals, weight, value, metrics)


def _add(means: Means, totals: np.ndarray, weight: float, loss: Any, metrics: Mapping[str, float]) -> None:
    names = means.objective.metrics
    if set(metrics) != set(names):
        unknown = [name for name in metrics if name not in names]
        problem = (
            f"the metric {unknown[0]!r}, which isn't declared in metrics={names!r}. "
            f"{did_you_mean(str(unknown[0]), names)}"
            if unknown
            else f"no metric {next(name for name in names if name not in metrics)!r}, which is declared."
        )
        raise UserFunctionError(f"{means.label} returned {problem}")
    totals[0] += weight
    totals[1] += _scalar(means, "the loss", loss) * weight
    for i, name in enumerate(names):
        totals[2 + i] += _scalar(means, f"the metric {name!r}", metrics[name]) * weight


def _scalar(means: Means, what: str, value: Any) -> float:
    shape = getattr(value, "shape", ())
    if shape not in ((), (1,)):
        raise TypeMismatchError(
            f"{means.label} returned {what} of shape {tuple(shape)}: return one number, the mean over rows."
        )
    try:
        return float(value if not shape else value[0])
    except (TypeError, ValueError) as error:
        raise TypeMismatchError(
            f"{means.label} returned {what} as a {type(value).__name__}: return one number, the mean over rows."
        ) from error


def _call(means: Means, function: Callable[..., Any], batch: Batch, rng: np.random.Generator) -> Any:
    try:
        return function(means.params, batch, rng)
    except HeadwaterError:
        raise
    except (Exception, SystemExit) as error:
        raise UserFunctionError(
            f"{means.objective.label}.{function.__name__} raised {type(error).__name__}: {error}\n"
            f"in shard {means.shard}, batch {means.batch} (counted from 0); it got {_shapes(batch)}\n"
            f"{own_traceback(error)}"
        ) from error


def _shapes(batch: Mapping[str, Array]) -> str:
    return ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in batch.items())
