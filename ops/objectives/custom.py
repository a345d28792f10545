"""custom: an objective of functions that the user wrote."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import ParameterError
from ..backend import Array
from ..expressions.types import parse_type
from ..training.program import Batch, DataInfo, Tree
from ..user_functions import check_picklable
from .objective import Objective


class Custom(Objective):
    """An objective of functions; made by `custom`."""

    def __init__(
        self,
        init: Callable[..., Tree],
        value_and_grad: Callable[..., tuple],
        predict: Callable[..., Mapping[str, Array]] | None,
        loss: Callable[..., Any] | None,
        columns: tuple[str, ...] | None,
        output: tuple[pa.Field, ...],
        metrics: tuple[str, ...],
        needs_target: bool,
        name: str,
    ):
        self.given: dict[str, Any] = {
            "init": init,
            "value_and_grad": value_and_grad,
            "predict": predict,
            "loss": loss,
        }
        self.columns, self.metrics, self.needs_target = columns, metrics, needs_target
        self.fields, self.name = output, name

    def init(self, rng: np.random.Generator, info: DataInfo) -> Tree:
        return self.given["init"](rng, info)

    def value_and_grad(
        self, params: Tree, batch: Batch, rng: np.random.Generator
    ) -> tuple[Any, Tree, dict[str, float]]:
        """Call the user's function, with as many arguments as it takes."""
        function = self.given["value_and_grad"]
        result = function(params, batch, rng) if _wants_rng(function) else function(params, batch)
        return (*result, {}) if isinstance(result, tuple) and len(result) == 2 else result

    def loss(self, params: Tree, batch: Batch, rng: np.random.Generator) -> tuple[Any, dict[str, float]]:
        """Call the user's loss, or take that of the gradient's function."""
        function = self.given["loss"]
        if function is None:
            return super().loss(params, batch, rng)
        result = function(params, batch)
        return result if isinstance(result, tuple) else (result, {})

    def predict(self, params: Tree, batch: Batch) -> dict[str, Array]:
        function = self.given["predict"]
        if function is None:
            raise ParameterError(
                f"{self.label} has no predict function: give custom(..., predict=f, output={{...}})."
            )
        return dict(function(params, batch))

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        if self.given["predict"] is None:
            raise ParameterError(f"{self.label} has no predict function: give custom(..., predict=f).")
        return list(self.fields)

    def parameters(self) -> Any:
        return (
            "custom",
            self.given,
            self.columns,
            self.metrics,
            self.needs_target,
            [(field.name, field.type) for field in self.fields],
        )

    def functions(self) -> tuple[Callable[..., Any], ...]:
        return tuple(self.given[name] for name in ("value_and_grad", "loss") if self.given[name] is not None)

    @property
    def label(self) -> str:
        return self.name


def custom(
    init: Callable[..., Tree],
    value_and_grad: Callable[..., tuple],
    predict: Callable[..., Mapping[str, Array]] | None = None,
    *,
    loss: Callable[..., Any] | None = None,
    columns: Sequence[str] | None = None,
    output: Mapping[str, Any] | pa.Schema | None = None,
    metrics: Sequence[str] = (),
    needs_target: bool = True,
    name: str | None = None,
) -> Custom:
    """Make an objective of functions. They decide the model's lineage key, with all that they call.

    They must give the same for the same arguments: no clocks, no unseeded random numbers, no state.

    Args:
        init: ``init(rng, info)`` returns the first parameters: nested dicts and lists of arrays.
        value_and_grad: ``value_and_grad(params, batch)``, or ``(params, batch, rng)``, returns the mean loss
            over the batch's rows, its gradient as a tree like the parameters, and, if there are ``metrics``, a
            dict of them.
        predict: ``predict(params, batch)`` returns a dict of arrays, a value or row of k for each row.
        loss: ``loss(params, batch)`` returns the mean loss that validation reports, and with ``metrics`` a dict of
            those; None takes that of ``value_and_grad``.
        columns: which columns a batch has; None stacks the features into "x", of shape (rows, features).
        output: column name to Arrow type of what ``predict`` returns; None is one "prediction", float64.
        metrics: names of further figures.
        needs_target: whether a batch needs a target, "y".
        name: in plans and errors; None is the name of ``value_and_grad``.

    Raises:
        ParameterError: what isn't a function, or takes other arguments.
        SerializationError: a function can't be sent to the workers.

    Example:
        >>> def start(rng, info):
        ...     return {"w": np.zeros(info.width)}
        >>> def least_squares(params, batch):
        ...     error = batch["x"] @ params["w"] - batch["y"]
        ...     return (error**2).mean(), {"w": 2 * batch["x"].T @ error / len(error)}
        >>> custom(start, least_squares).label
        'least_squares'
    """
    functions = {"init": init, "value_and_grad": value_and_grad, "predict": predict, "loss": loss}
    for role, function in functions.items():
        if function is None and role in ("predict", "loss"):
            continue
        if not callable(function):
            raise ParameterError(f"custom({role}={function!r}): give a function, as {_EXAMPLES[role]}.")
        if not _takes(function, 2) and not (role == "value_and_grad" and _takes(function, 3)):
            raise ParameterError(
                f"custom({role}={getattr(function, '__qualname__', function)!s}): it is called as {_EXAMPLES[role]}, "
                f"and takes {inspect.signature(function)}."
            )
        check_picklable(function)
    fields = {"prediction": pa.float64()} if output is None else output
    if isinstance(fields, pa.Schema):
        declared = tuple(fields)
    else:
        declared = tuple(pa.field(column, parse_type(type)) for column, type in fields.items())
    return Custom(
        init,
        value_and_grad,
        predict,
        loss,
        None if columns is None else tuple(columns),
        declared,
        tuple(metrics),
        needs_target,
        name or str(getattr(value_and_grad, "__name__", type(value_and_grad).__name__)),
    )


_EXAMPLES = {
    "init": "init(rng, info)",
    "value_and_grad": "value_and_grad(params, batch) or value_and_grad(params, batch, rng)",
    "predict": "predict(params, batch)",
    "loss": "loss(params, batch)",
}


def _wants_rng(function: Callable[..., Any]) -> bool:
    """Whether a function has a third argument to be filled: a required one, or one that is named rng."""
    if not _takes(function, 2):
        return True
    try:
        names = list(inspect.signature(function).parameters)
    except ValueError:
        return False
    return names[2:3] == ["rng"]


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with that many positional arguments; True if it can't be told."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True
