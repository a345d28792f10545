"""Linear models: least squares, logistic and softmax regression, with elastic-net penalties.

The loss is the (weighted) mean over rows, plus ``l1 * sum |w|`` plus ``0.5 * l2 * sum w**2``; intercepts aren't
penalized. So ``l2 = 1 / (C * rows)`` is scikit-learn's C. Minibatches take the subgradient of the l1 penalty, which
makes weights small and not exactly 0.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import ParameterError
from ..backend import Array, array_namespace
from ..device.arrays.gradients import MOST_FEATURES, linear_gradient
from ..training.program import Batch, DataInfo, Tree
from .checks import check_classes, check_penalty, check_width
from .losses import (
    binary_columns,
    binary_fields,
    class_columns,
    class_fields,
    cross_entropy,
    features,
    log_loss,
    mean_and_scale,
    mean_and_slope,
    sigmoid,
    softmax,
    squared_error,
    sum_all,
    sum_rows,
)
from .objective import Objective


class LinearModel(Objective):
    """Base: a linear predictor ``x @ weights + intercept``, a loss of it, and penalties.

    Parameters are ``{"weights": (d,), "intercept": ()}``, or with K classes ``(d, K)`` and ``(K,)``. They start at 0.

    Args:
        l1, l2: penalties, at least 0.
        fit_intercept: whether there is an intercept; without, ``"intercept"`` isn't in the parameters.
    """

    trusted = True
    draws = False

    def __init__(self, l1: float = 0.0, l2: float = 0.0, fit_intercept: bool = True):
        check_penalty(type(self).__name__, l1=l1, l2=l2)
        self.l1, self.l2, self.fit_intercept = float(l1), float(l2), bool(fit_intercept)

    @property
    def outputs(self) -> int | None:
        """Columns of the linear predictor; None is a vector."""
        return None

    # -- what a subclass gives -----------------------------------------------------------------------

    def row_losses(self, z: Array, y: Array) -> tuple[Array, Array]:
        """Return each row's loss, shape (rows,), and its derivative by the linear predictor, shape of ``z``."""
        raise NotImplementedError

    def curvature(self, z: Array) -> Array:
        """Return the second derivative of each row's loss by the linear predictor; (rows,) or (rows, K, K)."""
        raise NotImplementedError

    # -- the Objective -------------------------------------------------------------------------------

    def check(self, info: DataInfo) -> None:
        check_width(self.label, info)

    def init(self, rng: np.random.Generator, info: DataInfo) -> Tree:
        xp = array_namespace()
        tail = () if self.outputs is None else (self.outputs,)
        params = {"weights": xp.zeros((info.width, *tail), info.dtype)}
        if self.fit_intercept:
            params["intercept"] = xp.zeros(tail, info.dtype)
        return params

    def value_and_grad(
        self, params: Tree, batch: Batch, rng: Any = None
    ) -> tuple[float, Tree, dict[str, float]]:
        """Return the penalized mean loss and its (sub)gradient."""
        loss, grads = self.data_value_and_grad(params, batch)
        weights = params["weights"]
        if self.l2:
            loss += 0.5 * self.l2 * sum_all(array_namespace().square(weights))
            grads["weights"] += self.l2 * weights
        if self.l1:
            xp = array_namespace()
            loss += self.l1 * sum_all(xp.abs(weights))
            grads["weights"] += self.l1 * xp.sign(weights)
        return loss, grads, {}

    def data_value_and_grad(self, params: Tree, batch: Batch) -> tuple[float, dict[str, Array]]:
        """Return the mean loss and its gradient without penalties, for solvers that treat those on their own."""
        x = features(batch, params["weights"].dtype)
        xp = array_namespace()
        if xp is not np and self.sums_in_double(x.shape[1]):
            return self._in_one_pass(params, x, batch, xp)
        losses = _KNOWN.get(type(self).row_losses, self.row_losses)
        loss, slope = mean_and_slope(losses, self.predictor(params, x), batch["y"], batch.get("weight"))
        grads = {"weights": x.T @ slope}
        if self.fit_intercept:
            grads["intercept"] = sum_rows(slope).astype(slope.dtype, copy=False)
        return loss, grads

    def sums_in_double(self, features: int) -> bool:
        """Whether a device sums the gradient in one pass, in float64; then as many rows as there are may go in one."""
        kind, own = _NARROW.get(_KNOWN.get(type(self).row_losses)), type(self).predictor
        return kind is not None and own is LinearModel.predictor and features <= MOST_FEATURES

    def _in_one_pass(
        self, params: Tree, x: Array, batch: Batch, xp: ModuleType
    ) -> tuple[float, dict[str, Array]]:
        """Return the mean loss and its gradient from one pass over the rows, on a device."""
        kind = _NARROW[_KNOWN[type(self).row_losses]]
        weights, dtype = params["weights"], params["weights"].dtype
        sums = linear_gradient(kind, x, batch["y"], batch.get("weight"), weights, params.get("intercept"), xp)
        grads = {"weights": (sums.weights / sums.weight).astype(dtype)}
        if self.fit_intercept:
            grads["intercept"] = (sums.intercept / sums.weight).astype(dtype)
        return float(sums.loss / sums.weight), grads

    def loss(self, params: Tree, batch: Batch, rng: Any = None) -> tuple[float, dict[str, float]]:
        """Return the mean loss without penalties."""
        losses, _ = self.row_losses(
            self.predictor(params, features(batch, params["weights"].dtype)), batch["y"]
        )
        return mean_and_scale(losses, None, batch.get("weight"))[0], {}

    def hessian(self, params: Tree, batch: Batch) -> Array:
        """Return the mean Hessian of the loss with the l2 penalty, as for Newton's method.

        Returns:
            Shape (p, p), float64, for the p parameters in the order in which they are packed: weights (d, or d by
            K row by row), then the intercept.
        """
        xp = array_namespace()
        x = features(batch, params["weights"].dtype)
        curve = self.curvature(self.predictor(params, x)).astype(xp.float64)
        weight = batch.get("weight")
        share = xp.full(len(x), 1.0 / len(x)) if weight is None else weight / weight.sum(dtype=xp.float64)
        design = x.astype(xp.float64)
        if self.fit_intercept:
            design = xp.concatenate([design, xp.ones((len(x), 1))], axis=1)
        if self.outputs is None:
            hessian = design.T @ (design * (curve * share)[:, None])
        else:
            d, k = design.shape[1], self.outputs
            hessian = xp.empty((d, k, d, k))
            for a in range(k):
                for b in range(a + 1):
                    part = design.T @ (design * (curve[:, a, b] * share)[:, None])
                    hessian[:, a, :, b] = hessian[:, b, :, a] = part
            hessian = hessian.reshape(d * k, d * k)
        penalized = xp.arange(params["weights"].size)
        hessian[penalized, penalized] += self.l2
        return hessian

    def predictor(self, params: Tree, x: Array) -> Array:
        """Return ``x @ weights + intercept``."""
        z = x @ params["weights"]
        if self.fit_intercept:
            z += params["intercept"]
        return z


class LinearRegression(LinearModel):
    """Least squares: half the squared error, ``0.5 * (x @ w + b - y)**2``; predicts "prediction".

    Args:
        l1, l2, fit_intercept: as of `LinearModel`; l1 is the lasso, l2 ridge regression, both the elastic net.

    Example:
        >>> LinearRegression(l2=0.1)
        LinearRegression(l1=0.0, l2=0.1, fit_intercept=True)
    """

    def row_losses(self, z: Array, y: Array) -> tuple[Array, Array]:
        return squared_error(z, y)

    def curvature(self, z: Array) -> Array:
        return array_namespace().ones_like(z)

    def predict(self, params: Tree, batch: Batch) -> dict[str, Array]:
        z = self.predictor(params, features(batch, params["weights"].dtype))
        return {"prediction": z.astype("float64")}


class LogisticRegression(LinearModel):
    """Two classes: the log loss of ``sigmoid(x @ w + b)``; predicts "probability" (of 1) and "prediction" (0 or 1).

    The target is a boolean, or 0 and 1.

    Args:
        l1, l2, fit_intercept: as of `LinearModel`.
    """

    def check(self, info: DataInfo) -> None:
        super().check(info)
        check_classes(self.label, info, 2)

    def row_losses(self, z: Array, y: Array) -> tuple[Array, Array]:
        return log_loss(z, y)

    def curvature(self, z: Array) -> Array:
        p = sigmoid(z)
        return p * (1 - p)

    def predict(self, params: Tree, batch: Batch) -> dict[str, Array]:
        return binary_columns(self.predictor(params, features(batch, params["weights"].dtype)))

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        return binary_fields()


class SoftmaxRegression(LinearModel):
    """K classes: the cross-entropy of ``softmax(x @ w + b)``; predicts "prediction" and "probabilities".

    The target is an integer, 0 to K - 1.

    Args:
        classes: K, at least 2.
        l1, l2, fit_intercept: as of `LinearModel`.
    """

    def __init__(self, classes: int, l1: float = 0.0, l2: float = 0.0, fit_intercept: bool = True):
        super().__init__(l1, l2, fit_intercept)
        if not isinstance(classes, int) or classes < 2:
            raise ParameterError(
                f"SoftmaxRegression(classes={classes!r}): give the number of classes, 2 or more."
            )
        self.classes = classes

    @property
    def outputs(self) -> int | None:
        return self.classes

    def check(self, info: DataInfo) -> None:
        super().check(info)
        check_classes(self.label, info, self.classes)

    def row_losses(self, z: Array, y: Array) -> tuple[Array, Array]:
        return cross_entropy(z, y)

    def curvature(self, z: Array) -> Array:
        xp = array_namespace()
        p = softmax(z)
        return p[:, :, None] * (xp.eye(self.classes, dtype=p.dtype) - p[:, None, :])

    def predict(self, params: Tree, batch: Batch) -> dict[str, Array]:
        return class_columns(self.predictor(params, features(batch, params["weights"].dtype)))

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        return class_fields(self.classes)


#: what the built-in models' losses are; a subclass that has others keeps them
_KNOWN: dict[Any, Any] = {
    LinearRegression.row_losses: squared_error,
    LogisticRegression.row_losses: log_loss,
    SoftmaxRegression.row_losses: cross_entropy,
}
#: losses of a single predictor, for which a device makes the gradient of narrow rows in one pass
_NARROW: dict[Any, str] = {squared_error: "squared", log_loss: "logistic"}
