"""KMeans: clusters around k means, by Lloyd's algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...errors import ParameterError, did_you_mean
from ..backend import Array, array_namespace, to_host
from .direct import at_least, check_rows, refuse_optimizer, whole
from .objective import Objective

INITS = ("k-means++", "random")
EMPTY = ("reseed", "keep")


class KMeans(Objective):
    """Put rows into k clusters, so that the sum of squared distances to the clusters' means is small.

    The first centers are drawn, as is usual, far from each other: by k-means||, the form of k-means++ that draws many
    rows in each of few passes. Distances are computed in the features' own type, on features shifted to mean 0; sums
    are float64. Rows may have weights.

    Args:
        k: number of clusters.
        init: "k-means++"; "random", which takes k rows; or an array of shape (k, features).
        max_iterations: most passes of Lloyd's algorithm.
        tolerance: it ends when the centers' squared shifts sum to at most this times the mean variance of the features.
        empty: what becomes of a cluster that has lost all its rows: "reseed" moves its center to a row that is
            farthest from its own, "keep" leaves it where it is.

    Raises:
        ParameterError: an argument out of range.

    Example:
        >>> KMeans(8)
        KMeans(k=8, initial='k-means++', max_iterations=300, tolerance=0.0001, empty='reseed')

    Source: Lloyd, Least squares quantization in PCM (1982); Bahmani et al., Scalable K-Means++ (2012).
    """

    needs_target = False

    def __init__(
        self,
        k: int,
        init: Literal["k-means++", "random"] | Any = "k-means++",
        *,
        max_iterations: int = 300,
        tolerance: float = 1e-4,
        empty: Literal["reseed", "keep"] = "reseed",
    ):
        self.k = whole("KMeans", "k", k, 1)
        if isinstance(init, str):
            if init not in INITS:
                raise ParameterError(f"KMeans(init={init!r}): {did_you_mean(init, INITS)} Or give an array.")
        else:
            init = np.array(init, np.float64)
            if init.ndim != 2 or len(init) != k:
                raise ParameterError(
                    f"KMeans(init=): an array of shape {init.shape}; give one row for each of {k} centers."
                )
        if empty not in EMPTY:
            raise ParameterError(f"KMeans(empty={empty!r}): {did_you_mean(str(empty), EMPTY)}")
        self.initial: Any = init
        self.max_iterations = whole("KMeans", "max_iterations", max_iterations, 1)
        self.tolerance = at_least("KMeans", "tolerance", tolerance, 0.0)
        self.empty = empty

    def check(self, info: Any) -> None:
        """Raise if there are fewer rows than clusters, or initial centers of another width."""
        check_rows("KMeans", "k", self.k, info.rows)
        if not isinstance(self.initial, str) and self.initial.shape[1] != info.width:
            raise ParameterError(
                f"KMeans(init=): centers of {self.initial.shape[1]} values, and there are {info.width} features."
            )

    def predict(self, params: Mapping[str, Any], batch: Mapping[str, Array]) -> dict[str, Array]:
        """Return each row's ``cluster``, int32, and its ``distance`` to the cluster's center."""
        xp = array_namespace()
        centers = to_host(params["centers"]).astype(np.float64)
        middle = centers.mean(axis=0)
        x = batch["x"]
        kind = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
        near = x - xp.asarray(middle, dtype=kind)
        anchors = xp.asarray(centers - middle, dtype=kind)
        scores = near @ (-2 * anchors).T + (anchors * anchors).sum(axis=1)
        cluster = scores.argmin(axis=1)
        near -= anchors[cluster]
        distance = xp.sqrt(xp.einsum("ij,ij->i", near, near))
        return {"cluster": cluster.astype(xp.int32), "distance": distance.astype(xp.float64)}

    def output(self, info: Any = None) -> list[pa.Field]:
        """Return the fields that `predict` adds."""
        return [pa.field("cluster", pa.int32()), pa.field("distance", pa.float64())]

    def program(self, settings: Any) -> Any:
        """Return Lloyd's algorithm.

        Raises:
            ParameterError: an optimizer, epochs, steps or early stopping were given.
        """
        from ..training.lloyd import Lloyd

        refuse_optimizer("KMeans", settings)
        return Lloyd(self)
