"""FactorizationMachine: a linear model, and for every two features the product of their values and factors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...errors import ParameterError
from ..backend import Array, array_namespace
from ..training.program import Batch, DataInfo, Tree
from .checks import check_penalty, check_width
from .losses import features, mean_and_scale, mean_and_slope, sum_all, sum_rows
from .objective import Objective
from .tasks import make_task


class FactorizationMachine(Objective):
    """A linear model with pairwise interactions, ``b + w x + sum over i < j of <v_i, v_j> x_i x_j``.

    Takes time in proportion to rows, features and rank, not to pairs of features. Parameters are ``{"intercept":
    (), "weights": (d,), "factors": (d, rank)}``; factors start at random, of a normal distribution.

    Args:
        rank: length of each feature's vector of factors, at least 1.
        task: "regression" or "binary", with the losses of `LinearRegression` and `LogisticRegression`.
        l2: penalty of weights and factors, ``0.5 * l2 * sum of squares``.
        scale: standard deviation of the first factors.

    Source: S. Rendle, Factorization Machines, ICDM 2010.

    Example:
        >>> FactorizationMachine(rank=4, task="binary").label
        'FactorizationMachine'
    """

    trusted = True
    draws = False

    def __init__(
        self,
        rank: int,
        task: Literal["regression", "binary"] = "regression",
        l2: float = 0.0,
        scale: float = 0.01,
    ):
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ParameterError(f"FactorizationMachine(rank={rank!r}): give a whole number, at least 1.")
        check_penalty("FactorizationMachine", l2=l2, scale=scale)
        self.rank, self.task, self.l2, self.scale = rank, task, float(l2), float(scale)
        self._task = make_task("FactorizationMachine", task, None, ("regression", "binary"))

    def check(self, info: DataInfo) -> None:
        check_width(self.label, info)
        self._task.check(self.label, info)

    def init(self, rng: np.random.Generator, info: DataInfo) -> Tree:
        xp = array_namespace()
        factors = rng.standard_normal((info.width, self.rank)) * self.scale
        return {
            "intercept": xp.zeros((), info.dtype),
            "weights": xp.zeros(info.width, info.dtype),
            "factors": xp.asarray(factors.astype(info.dtype)),
        }

    def value_and_grad(
        self, params: Tree, batch: Batch, rng: Any = None
    ) -> tuple[float, Tree, dict[str, float]]:
        """Return the penalized mean loss and its gradient."""
        xp = array_namespace()
        w, v = params["weights"], params["factors"]
        x = features(batch, w.dtype)
        squares = x * x
        sums = x @ v
        z = _outputs(params, x, squares, sums)
        loss, slope = mean_and_slope(self._task.row_losses, z, batch["y"], batch.get("weight"))
        grads = {
            "intercept": sum_rows(slope).astype(slope.dtype, copy=False),
            "weights": x.T @ slope,
            "factors": x.T @ (sums * slope[:, None]) - v * (squares.T @ slope)[:, None],
        }
        if self.l2:
            for name in ("weights", "factors"):
                loss += 0.5 * self.l2 * sum_all(xp.square(params[name]))
                grads[name] += self.l2 * params[name]
        return loss, grads, {}

    def loss(self, params: Tree, batch: Batch, rng: Any = None) -> tuple[float, dict[str, float]]:
        """Return the mean loss without the penalty."""
        losses, _ = self._task.row_losses(self._predictor(params, batch), batch["y"])
        return mean_and_scale(losses, None, batch.get("weight"))[0], {}

    def predict(self, params: Tree, batch: Batch) -> dict[str, Array]:
        return self._task.columns(self._predictor(params, batch))

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        return self._task.fields()

    def _predictor(self, params: Tree, batch: Batch) -> Array:
        x = features(batch, params["weights"].dtype)
        return _outputs(params, x, x * x, x @ params["factors"])


def _outputs(params: Tree, x: Array, squares: Array, sums: Array) -> Array:
    """The model's value for each row; ``sums`` is ``x @ factors`` (equation 5 of Rendle's Lemma 3.1)."""
    v = params["factors"]
    pairs = 0.5 * ((sums * sums).sum(axis=1) - squares @ (v * v).sum(axis=1))
    return x @ params["weights"] + params["intercept"] + pairs
