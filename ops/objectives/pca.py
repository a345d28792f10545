"""PCA: the directions in which rows vary most, and rows in terms of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import HeadwaterError, ParameterError
from ..backend import Array, array_namespace, to_host
from ..training.blocks import pass_over
from ..training.program import Batch, DataInfo, Program, Settings, Shard, State
from .direct import check_finite, on_host, refuse_optimizer, times, whole
from .losses import sum_all, sum_rows
from .objective import Objective

#: a component whose variance is below this share of all variance has none: it is rounding
_NO_VARIANCE = 1e-14


class PCA(Objective):
    """Principal components: the orthogonal directions in which rows vary most.

    Two passes, in float64: the mean, then the covariance around it. Rows may have weights.

    Args:
        components: how many; or as a share between 0 and 1: the fewest that explain so much of the variance.
        whiten: divide each component by its standard deviation.

    Raises:
        ParameterError: an argument out of range.

    Example:
        >>> PCA(2)
        PCA(components=2, whiten=False)

    Source: Hotelling, Analysis of a complex of statistical variables into principal components (1933). Each
    component's sign is such that its largest element is positive.
    """

    needs_target = False

    def __init__(self, components: int | float, *, whiten: bool = False):
        if isinstance(components, float):
            if not 0 < components < 1:
                raise ParameterError(
                    f"PCA(components={components!r}): give a whole number, or a share of the variance between 0 and 1."
                )
            self.components: int | float = components
        else:
            self.components = whole("PCA", "components", components, 1)
        self.whiten = bool(whiten)

    def check(self, info: DataInfo) -> None:
        """Raise if there are more components than features, or fewer than two rows."""
        if self.components > info.width:
            raise ParameterError(
                f"PCA(components={self.components}): there are only {info.width} features. Give at most that."
            )
        if info.rows < 2:
            raise HeadwaterError(f"PCA: {info.rows} training rows have no variance. It takes at least two.")

    def predict(self, params: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
        """Return ``components``, shape (rows, components), float64."""
        xp = array_namespace()
        directions = to_host(params["components"]).T
        if self.whiten:
            variance = to_host(params["explained_variance"])
            full = variance > _NO_VARIANCE * max(float(to_host(params["total_variance"])), 0.0)
            directions = directions * np.where(full, 1 / np.sqrt(np.where(full, variance, 1)), 0)
        shifted = batch["x"].astype(xp.float64) - xp.asarray(params["mean"])
        return {"components": shifted @ xp.asarray(directions)}

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        """Return the field that `predict` adds: a list, of fixed size if the number of components is given."""
        size = self.components if isinstance(self.components, int) else -1
        return [pa.field("components", pa.list_(pa.float64(), size))]

    def program(self, settings: Settings) -> Program:
        """Return the two passes.

        Raises:
            ParameterError: an optimizer, epochs, steps or early stopping were given.
        """
        refuse_optimizer("PCA", settings)
        return Covariance(self)


class Covariance:
    """The passes of PCA as a program: "mean", then "covariance" around it.

    Args:
        objective: what to fit.
    """

    def __init__(self, objective: PCA):
        self.objective = objective

    def start(self, info: DataInfo) -> State:
        """Return the first state."""
        return {"step": 0, "phase": "mean", "width": info.width, "history": []}

    def statistics(self, state: State, shard: Shard) -> Mapping[str, Array]:
        """Return the sums of a shard's rows, or of their outer products."""
        xp, d = array_namespace(), state["width"]
        total, products, weight = xp.zeros(d), xp.zeros((d, d)), xp.zeros(1)
        mean = None if state["phase"] == "mean" else xp.asarray(state["mean"])
        for batch in pass_over(shard, 3 * d):
            x, by_row = batch["x"].astype(xp.float64), batch.get("weight")
            if mean is None:
                weight += x.shape[0] if by_row is None else sum_all(by_row)
            else:
                x -= mean
                products += times(x, by_row).T @ x
            total += sum_rows(times(x, by_row))
        if mean is None:
            return {"total": to_host(total), "weight": to_host(weight)}
        return {"total": to_host(total), "products": to_host(products)}

    def update(self, state: State, sums: Mapping[str, Array]) -> State:
        """Return the state with the mean, or with the components."""
        state, host = on_host(state), on_host(sums)
        check_finite("PCA", *host.values())
        after = {**state, "step": state["step"] + 1}
        if state["phase"] == "mean":
            weight = float(host["weight"][0])
            return {
                **after,
                "phase": "covariance",
                "weight": weight,
                "mean": host["total"] / max(weight, 1e-300),
            }
        weight = state["weight"]
        rest = host["total"] / weight  # of rounding: the mean's error
        covariance = (host["products"] - weight * np.outer(rest, rest)) / max(weight - 1, 1e-300)
        variance, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        variance, vectors = np.maximum(variance[::-1], 0.0), vectors[:, ::-1].T
        largest = vectors[np.arange(len(vectors)), np.abs(vectors).argmax(axis=1)]
        vectors = vectors * np.where(largest < 0, -1.0, 1.0)[:, None]
        total = float(variance.sum())
        share = variance / total if total > 0 else np.zeros_like(variance)
        count = self.objective.components
        if isinstance(count, float):
            count = min(int(np.searchsorted(np.cumsum(share), count, side="right")) + 1, len(variance))
        return {
            **after,
            "phase": "done",
            "mean": state["mean"] + rest,
            "components": np.ascontiguousarray(vectors[:count]),
            "explained_variance": variance[:count].copy(),
            "explained_variance_ratio": share[:count].copy(),
            "total_variance": total,
            "history": [
                {"loss": total - float(variance[:count].sum()), "explained": float(share[:count].sum())}
            ],
        }

    def finished(self, state: State) -> bool:
        """Say whether both passes are done."""
        return state["phase"] == "done"

    def metrics(self, state: State) -> dict[str, float]:
        """Return "loss", the variance left over, and "explained", the share that isn't."""
        return dict(state["history"][-1]) if state["history"] else {}

    def params(self, state: State) -> dict[str, Any]:
        """Return ``mean`` (d,), ``components`` (n, d), ``explained_variance`` and its ratio (n,), all float64."""
        state = on_host(state)
        names = ("mean", "components", "explained_variance", "explained_variance_ratio")
        return {
            **{name: state[name] for name in names},
            "total_variance": np.float64(state["total_variance"]),
        }

    def progress(self, state: State) -> float:
        """Return the share of passes that are done."""
        return state["step"] / 2
