"""GaussianMixture: rows as draws from a few normal distributions, fitted by expectation maximization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...errors import HeadwaterError, ParameterError, did_you_mean
from ..backend import Array, array_namespace, to_host
from ..training.program import Batch, DataInfo, Program, Settings
from .direct import at_least, check_rows, refuse_optimizer, whole
from .objective import Objective

COVARIANCES = ("full", "diag")
_GIVEN = ("weights", "means", "covariances")


class GaussianMixture(Objective):
    """Rows as draws from k normal distributions, each with a weight, a mean and a covariance.

    Expectation maximization in float64, from the clusters of `KMeans`. Rows may have weights.

    Args:
        k: number of components.
        covariance: "full", or "diag" for features that are independent within a component.
        reg_covar: added to the variances, so that no component collapses onto a point.
        max_iterations: most iterations of expectation maximization.
        tolerance: it ends when the mean log-likelihood of a row changes by less.
        init: "k-means"; or a dict of ``weights`` (k,), ``means`` (k, d) and ``covariances``, (k, d, d) or (k, d).

    Raises:
        ParameterError: an argument out of range.

    Example:
        >>> GaussianMixture(3, covariance="diag").covariance
        'diag'

    Source: Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm (1977).
    """

    needs_target = False

    def __init__(
        self,
        k: int,
        covariance: Literal["full", "diag"] = "full",
        *,
        reg_covar: float = 1e-6,
        max_iterations: int = 100,
        tolerance: float = 1e-3,
        init: Literal["k-means"] | Mapping[str, Any] = "k-means",
    ):
        self.k = whole("GaussianMixture", "k", k, 1)
        if covariance not in COVARIANCES:
            raise ParameterError(
                f"GaussianMixture(covariance={covariance!r}): {did_you_mean(str(covariance), COVARIANCES)}"
            )
        self.covariance = covariance
        self.reg_covar = at_least("GaussianMixture", "reg_covar", reg_covar, 0.0)
        self.max_iterations = whole("GaussianMixture", "max_iterations", max_iterations, 1)
        self.tolerance = at_least("GaussianMixture", "tolerance", tolerance, 0.0)
        self.initial: str | dict[str, np.ndarray] = init if isinstance(init, str) else self._given(init)
        if isinstance(self.initial, str) and self.initial != "k-means":
            raise ParameterError(f"GaussianMixture(init={init!r}): give 'k-means', or a dict of {_GIVEN}.")

    def check(self, info: DataInfo) -> None:
        """Raise if there are fewer rows than components, or initial means of another width."""
        check_rows("GaussianMixture", "k", self.k, info.rows)
        if not isinstance(self.initial, str) and self.initial["means"].shape[1] != info.width:
            raise ParameterError(
                f"GaussianMixture(init=): means of {self.initial['means'].shape[1]} values, and there are "
                f"{info.width} features."
            )

    def predict(self, params: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
        """Return each row's most probable ``cluster``, int32, and its log-likelihood as ``score``, float64."""
        xp = array_namespace()
        host = {name: to_host(params[name]) for name in _GIVEN}
        middle = host["weights"] @ host["means"]
        densities = Densities(host["weights"], host["means"] - middle, host["covariances"])
        joint = densities.joint(batch["x"].astype(xp.float64) - xp.asarray(middle))
        return {"cluster": joint.argmax(axis=0).astype(xp.int32), "score": log_sum_exp(joint)}

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        """Return the fields that `predict` adds."""
        return [pa.field("cluster", pa.int32()), pa.field("score", pa.float64())]

    def program(self, settings: Settings) -> Program:
        """Return expectation maximization.

        Raises:
            ParameterError: an optimizer, epochs, steps or early stopping were given.
        """
        from ..training.expectation import ExpectationMaximization

        refuse_optimizer("GaussianMixture", settings)
        return ExpectationMaximization(self)

    def _given(self, init: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if set(init) != set(_GIVEN):
            raise ParameterError(f"GaussianMixture(init=): got {sorted(init)}; give {sorted(_GIVEN)}.")
        arrays = {name: np.array(init[name], np.float64) for name in _GIVEN}
        d = arrays["means"].shape[-1]
        shapes = {"weights": (self.k,), "means": (self.k, d), "covariances": (self.k, d, d)}
        if self.covariance == "diag":
            shapes["covariances"] = (self.k, d)
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ParameterError(
                    f"GaussianMixture(init=): {name} of shape {arrays[name].shape}; give shape {shape}."
                )
        return arrays


class Densities:
    """Log-densities of a mixture's components.

    Args:
        weights: shape (k,), not negative.
        means: shape (k, d).
        covariances: shape (k, d, d), or (k, d) of variances.

    Raises:
        HeadwaterError: a covariance that isn't positive definite.
    """

    def __init__(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray):
        xp = array_namespace()
        d = means.shape[1]
        with np.errstate(divide="ignore"):
            constant = np.log(weights) - 0.5 * d * np.log(2 * np.pi)
        self.diagonal = covariances.ndim == 2
        if self.diagonal:
            if not (covariances > 0).all():
                raise _collapsed(int(np.argmin(covariances.min(axis=1))))
            # -(x - m)^2 / 2v = x^2 (-1 / 2v) + x (m / v) - m^2 / 2v
            self.factors = xp.asarray(np.concatenate([-0.5 / covariances, means / covariances], axis=1))
            constant -= 0.5 * (np.log(covariances) + means**2 / covariances).sum(axis=1)
        else:
            inverse = np.empty_like(covariances)
            for j, covariance in enumerate(covariances):
                try:
                    lower = np.linalg.cholesky(covariance)
                except np.linalg.LinAlgError:
                    raise _collapsed(j) from None
                inverse[j] = np.linalg.inv(lower).T
                constant[j] -= np.log(np.diag(lower)).sum()
            self.factors = xp.asarray(inverse)
            self.offsets = xp.asarray(np.einsum("kd,kde->ke", means, inverse))
        self.constant = xp.asarray(constant)

    def joint(self, x: Array) -> Array:
        """Return log(weight times density) for each component and row, shape (k, rows).

        Args:
            x: shape (rows, d), float64, near the origin.
        """
        xp = array_namespace()
        if self.diagonal:
            return self.factors @ xp.concatenate([x * x, x], axis=1).T + self.constant[:, None]
        joint = xp.empty((len(self.factors), len(x)))
        for j, factor in enumerate(self.factors):
            apart = x @ factor
            apart -= self.offsets[j]
            xp.einsum("ij,ij->i", apart, apart, out=joint[j]) if xp is np else joint.__setitem__(
                j, (apart * apart).sum(axis=1)
            )
        joint *= -0.5
        joint += self.constant[:, None]
        return joint


def log_sum_exp(joint: Array) -> Array:
    """Return the logarithm of the sum of exponentials along the first axis, without overflow."""
    xp = array_namespace()
    largest = joint.max(axis=0)
    return largest + xp.log(xp.exp(joint - largest).sum(axis=0))


def _collapsed(component: int) -> HeadwaterError:
    return HeadwaterError(
        f"GaussianMixture: the covariance of component {component} isn't positive definite: it has shrunk to too few "
        "rows, or features depend on each other. Give a larger reg_covar, or fewer components."
    )
