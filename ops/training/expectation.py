"""ExpectationMaximization: a Gaussian mixture's fit as a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Array, array_namespace, to_host
from ..objectives.direct import check_finite, on_host
from ..objectives.kmeans import KMeans
from ..objectives.losses import sum_all
from .blocks import pass_over
from .lloyd import Lloyd
from .program import DataInfo, Shard, State

if TYPE_CHECKING:
    from ..objectives.gmm import GaussianMixture

#: a component that has less than so many rows keeps its mean and covariance
_FEWEST_ROWS = 1e-8


class ExpectationMaximization:
    """Expectation maximization for Gaussian mixtures, as a program.

    Its passes: those of k-means, "harden", which puts each row to one component, and then "expect"; or "mean" and
    "expect", from given components. Means are relative to the features' mean.

    Args:
        objective: what to fit.
    """

    def __init__(self, objective: GaussianMixture):
        self.objective = objective
        self.lloyd = Lloyd(KMeans(objective.k))

    def start(self, info: DataInfo) -> State:
        """Return the first state, which holds one of k-means."""
        return {
            "step": 0,
            "phase": "cluster",
            "iteration": 0,
            "history": [],
            "width": info.width,
            "lloyd": self.lloyd.start(info),
            "done": False,
        }

    def statistics(self, state: State, shard: Shard) -> Mapping[str, Array]:
        """Return a shard's log-likelihood, and its moments for each component."""
        state = on_host(state)
        if state["phase"] == "cluster":
            return self.lloyd.statistics(state["lloyd"], shard)
        from ..objectives.gmm import Densities, log_sum_exp

        xp, k, d = array_namespace(), self.objective.k, state["width"]
        full = self.objective.covariance == "full"
        moments = xp.zeros((k, d + 1, d + 1) if full else (k, 2 * d + 1))
        likelihood, mean = xp.zeros(1), xp.asarray(state["mean"])
        hard = state["phase"] == "harden"
        if not hard:
            densities = Densities(state["weights"], state["means"], state["covariances"])
        centers = xp.asarray(state["means"])
        norms = (centers * centers).sum(axis=1)[:, None]
        for batch in pass_over(shard, k + 4 * (d + 1)):
            x = batch["x"].astype(xp.float64)
            x -= mean
            if hard:
                nearest = (norms - 2 * (centers @ x.T)).argmin(axis=0)
                share = (nearest == xp.arange(k)[:, None]).astype(xp.float64)
            else:
                share = densities.joint(x)
                each = log_sum_exp(share)
                share -= each
                xp.exp(share, out=share)
                by_row = batch.get("weight")
                likelihood += sum_all(each if by_row is None else each * by_row)
            if batch.get("weight") is not None:
                share *= batch["weight"]
            moments += _moments(x, share, full)
        return {"moments": to_host(moments), "likelihood": to_host(likelihood)}

    def update(self, state: State, sums: Mapping[str, Array]) -> State:
        """Return the state after a pass."""
        state, host = on_host(state), on_host(sums)
        after = {**state, "step": state["step"] + 1}
        if state["phase"] == "cluster":
            return {**after, **self._after_clustering(self.lloyd.update(state["lloyd"], sums))}
        check_finite("GaussianMixture", host["moments"], host["likelihood"])
        after.update(self._maximize(state, host["moments"]))
        after["phase"] = "expect"
        if state["phase"] == "expect":
            mean = float(host["likelihood"][0]) / state["weight"]
            before = -state["history"][-1]["loss"] if state["history"] else -np.inf
            after["history"] = [*state["history"], {"loss": -mean, "log_likelihood": mean}]
            after["iteration"] = state["iteration"] + 1
            after["done"] = (
                abs(mean - before) < self.objective.tolerance
                or after["iteration"] >= self.objective.max_iterations
            )
        return after

    def finished(self, state: State) -> bool:
        """Say whether the likelihood rests, or there were as many iterations as allowed."""
        return bool(state["done"])

    def metrics(self, state: State) -> dict[str, float]:
        """Return "loss", the negative mean log-likelihood before the last update, and the likelihood itself."""
        return dict(state["history"][-1]) if state["history"] else {}

    def params(self, state: State) -> dict[str, Any]:
        """Return ``weights`` (k,), ``means`` (k, d) and ``covariances``, (k, d, d) or (k, d), all float64."""
        state = on_host(state)
        return {
            "weights": state["weights"],
            "means": state["means"] + state["mean"],
            "covariances": state["covariances"],
        }

    def progress(self, state: State) -> float:
        """Return the share of the allowed iterations that is done."""
        return 1.0 if state["done"] else state["iteration"] / self.objective.max_iterations

    def _after_clustering(self, lloyd: State) -> State:
        """Go on when k-means has its centers, or, from given components, as soon as it has the mean."""
        given = self.objective.initial
        if not isinstance(given, str) and lloyd["phase"] != "moments":
            start = {**given, "means": given["means"] - lloyd["mean"]}
            return {
                "phase": "expect",
                "mean": lloyd["mean"],
                "weight": lloyd["weight"],
                "lloyd": None,
                **start,
            }
        if not lloyd["done"]:
            return {"lloyd": lloyd}
        k, d = lloyd["centers"].shape
        spread = max(lloyd["variance"], self.objective.reg_covar, np.finfo(np.float64).tiny)
        wide = np.full((k, d), spread)  # for components that get no rows
        return {
            "phase": "harden",
            "mean": lloyd["mean"],
            "weight": lloyd["weight"],
            "lloyd": None,
            "means": lloyd["centers"],
            "covariances": wide if self.objective.covariance == "diag" else wide[:, :, None] * np.eye(d),
        }

    def _maximize(self, state: State, moments: np.ndarray) -> State:
        d = state["width"]
        count = moments[:, -1, -1] if moments.ndim == 3 else moments[:, -1]
        some = count > _FEWEST_ROWS
        number = np.where(some, count, 1.0)[:, None]
        if moments.ndim == 3:
            mean = moments[:, -1, :d] / number
            square = moments[:, :d, :d] / number[:, :, None]
            covariance = square - mean[:, :, None] * mean[:, None, :]
            covariance = (covariance + covariance.transpose(0, 2, 1)) / 2 + self.objective.reg_covar * np.eye(
                d
            )
        else:
            mean = moments[:, d : 2 * d] / number
            covariance = np.maximum(moments[:, :d] / number - mean**2, 0.0) + self.objective.reg_covar
        kept = some.reshape(-1, *(1,) * (covariance.ndim - 1))
        return {
            "weights": count / max(float(count.sum()), np.finfo(np.float64).tiny),
            "means": np.where(some[:, None], mean, state["means"]),
            "covariances": np.where(kept, covariance, state["covariances"]),
        }


def _moments(x: Array, share: Array, full: bool) -> Array:
    """Return each component's moments: its share of the rows' outer products, with a one appended to each row; or,
    if not full, of their squares, the rows themselves and ones."""
    xp = array_namespace()
    ones = xp.ones((len(x), 1))
    if not full:
        return share @ xp.concatenate([x * x, x, ones], axis=1)
    rows = xp.concatenate([x, ones], axis=1)
    moments = xp.empty((len(share), rows.shape[1], rows.shape[1]))
    room = xp.empty_like(rows)
    for j, part in enumerate(share):
        xp.multiply(rows, part[:, None], out=room)
        moments[j] = room.T @ rows
    return moments
