"""Objective: what a training minimizes, a mean over rows of a loss that depends on parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ...lineage.functions import is_installed
from ..backend import Array

if TYPE_CHECKING:
    from ..training.program import Batch, DataInfo, Program, Settings, Tree


class Objective:
    """Base of what can be trained.

    A subclass gives `init` and `value_and_grad`, and `predict` with `output` if the model shall predict. Its
    attributes are its parameters: they, and its code, decide the model's lineage key. All functions must
    return the same for the same arguments; what is random comes from the generator they are given.

    Arrays are NumPy's, or CuPy's on a GPU worker: use ``headwater.ops.backend.array_namespace()``, or the
    arrays' own methods, where both shall do.

    Attributes:
        columns: names of the columns that a batch has beside "y" and "weight"; None stacks the features
            into "x", of shape (rows, features).
        needs_target: whether it learns from a target, "y".
        metrics: names of further figures that `value_and_grad` returns; they are averaged over rows.
        buffers: keys of the parameter dict that aren't trained: under such a key, the gradients hold what the
            value changes by, averaged over shards by rows (as running means of batch normalization).
        constants: keys of the parameter dict that never change; what gradients hold there isn't looked at.

    Example:
        >>> class Median(Objective):
        ...     def init(self, rng, info):
        ...         return {"weights": np.zeros(info.width, info.dtype)}
        ...     def value_and_grad(self, params, batch, rng):
        ...         error = batch["x"] @ params["weights"] - batch["y"]
        ...         return abs(error).mean(), {"weights": batch["x"].T @ np.sign(error) / len(error)}, {}
        >>> Median().label
        'Median'
    """

    columns: tuple[str, ...] | None = None
    needs_target: bool = True
    metrics: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    #: whether `value_and_grad` draws from the generator it is given; if not, blocks may be larger on a device
    draws: bool = True
    #: whether `value_and_grad` is trusted not to write into the parameters; others get them read-only
    trusted: bool = False

    def check(self, info: DataInfo) -> None:
        """Raise a HeadwaterError if this can't be learnt from such data; called before anything runs.

        Args:
            info: of the training rows.
        """

    def warm_up(self) -> None:
        """Import and make what is slow; a worker calls it before it joins a gang, so that no one waits for it."""

    def init(self, rng: np.random.Generator, info: DataInfo) -> Tree:
        """Return the first parameters.

        Args:
            rng: where random ones come from.
            info: of the training rows; ``info.dtype`` is the dtype that the arrays shall have.

        Returns:
            Nested dicts, lists and tuples of arrays.
        """
        raise NotImplementedError(f"{self.label} has no init(self, rng, info): return the first parameters.")

    def value_and_grad(
        self, params: Tree, batch: Batch, rng: np.random.Generator
    ) -> tuple[Any, Tree, dict[str, float]]:
        """Return the loss of a batch and its gradient.

        Args:
            params: as `init` returned them; don't write into them.
            batch: arrays by name with at least one row. With "weight", means are weighted by it.
            rng: for dropout and the like; keyed by seed, shard and step.

        Returns:
            The mean loss, the gradient of that (of the structure, shapes and dtypes of ``params``), and
            further figures by the names in `metrics`, means too.
        """
        raise NotImplementedError(
            f"{self.label} has no value_and_grad(self, params, batch, rng): return (mean loss, gradients, {{}})."
        )

    def loss(self, params: Tree, batch: Batch, rng: np.random.Generator) -> tuple[Any, dict[str, float]]:
        """Return the mean loss of a batch, as validation reports it, and further figures.

        By default that of `value_and_grad`. Built-in objectives leave out penalties and dropout here.
        """
        value, _, metrics = self.value_and_grad(params, batch, rng)
        return value, metrics

    def predict(self, params: Tree, batch: Batch) -> dict[str, Array]:
        """Return predicted columns, each of shape (rows,) or (rows, k), named as in `output`.

        Args:
            params: fitted.
            batch: arrays by name, without "y" and "weight"; may have no rows.
        """
        raise NotImplementedError(
            f"{self.label} doesn't predict: give predict(self, params, batch) and output."
        )

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        """Return the fields that `predict` adds; known without data."""
        return [pa.field("prediction", pa.float64())]

    def parameters(self) -> Any:
        """What decides the objective, for the lineage key: its attributes, and its code if it is a user's."""
        fields = {name: value for name, value in sorted(vars(self).items()) if not name.startswith("_")}
        return (type(self) if self._is_users() else type(self).__name__, fields)

    def program(self, settings: Settings) -> Program:
        """Return the program that minimizes it: the optimizer's own, if it is a solver, or minibatches."""
        from ..optim.solvers import Solver

        if not isinstance(settings.optimizer, Solver):
            from ..training.minibatch import Minibatch

            return Minibatch(self, settings)
        if settings.optimizer.name == "newton":
            from ..training.newton import Newton

            return Newton(self, settings)
        from ..training.lbfgs import Lbfgs

        return Lbfgs(self, settings)

    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The user's functions that compute loss and gradient, to be named in errors."""
        return (self.value_and_grad,) if self._is_users() else ()

    @property
    def label(self) -> str:
        """What errors and plans call it."""
        return type(self).__name__

    def _is_users(self) -> bool:
        return not is_installed(type(self).__module__)

    def __repr__(self) -> str:
        given = ", ".join(
            f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_")
        )
        return f"{type(self).__name__}({given})"
