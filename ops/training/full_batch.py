"""Full batch: an objective's loss and gradient over all rows, as statistics of a program; what solvers share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import HeadwaterError, ParameterError
from ..backend import Array, array_namespace, to_host
from ..objectives.direct import on_host
from ..objectives.linear import LinearModel
from ..objectives.objective import Objective
from .blocks import pass_over
from .program import Batch, DataInfo, Shard, State, Tree
from .row_means import Means, add_loss, add_value_and_grad, first_parameters
from .tree import TreeSpec, load_spec, pack, spec_of, unpack

#: purposes of random streams: first parameters, and what a loss draws, the same at each evaluation
_INIT, _LOSS = 0, 3
#: numbers of a row at least, as blocks on a device are cut, where their sums are of the parameters' type
_WIDTH = 512
#: last words of the names of parameters that l1 leaves alone
_UNPENALIZED = ("intercept", "bias")


class FullBatch:
    """The smooth part of an objective, evaluated at a state's "trial" vector over all rows.

    Args:
        objective: what to minimize. Its l1 penalty, if it has one, is left out, for the solver to treat.
        solver: the solver's name, for errors.

    Raises:
        ParameterError: an objective that has buffers, as of batch normalization.
    """

    def __init__(self, objective: Objective, solver: str):
        if objective.buffers:
            raise ParameterError(
                f"{objective.label} has buffers ({', '.join(objective.buffers)}), which change from batch to batch, "
                f"and {solver} takes all rows at once. Use an optimizer such as hw.optim.adam()."
            )
        self.objective, self.solver = objective, solver
        self.l1 = float(getattr(objective, "l1", 0.0) or 0.0)
        self.smooth: Any = objective
        if self.l1:
            self.smooth = copy.copy(objective)
            self.smooth.l1 = 0.0

    def start(self, info: DataInfo, dtype: str | None = None) -> State:
        """Return the first state, whose trial are the objective's first parameters.

        Args:
            info: of the training rows.
            dtype: of the evaluation; None is that of the parameters.
        """
        tree = first_parameters(self.objective, info.rng(_INIT), info)
        spec = spec_of(tree, "float64")
        return {
            "step": 0,
            "iteration": 0,
            "spec": spec.text,
            "dtype": info.dtype,
            "evaluated": dtype or info.dtype,
            "trial": to_host(pack(tree, spec)),
            "history": [],
            "validated": info.validation_rows > 0,
            "done": False,
        }

    def statistics(self, state: State, shard: Shard, hessian: bool = False) -> Mapping[str, Array]:
        """Return the sums of a shard's losses, gradients and, if asked for, Hessians at the trial, and of weights."""
        xp, spec = array_namespace(), spec_in(state)
        params = unpack(xp.asarray(state["trial"], dtype=state["evaluated"]), spec)
        totals, rng = self._zeros(), shard.rng(_LOSS)
        grad = xp.zeros(spec.size)
        curvature = xp.zeros((spec.size, spec.size)) if hessian else None
        for number, batch in enumerate(self._blocks(shard, spec, hessian)):
            found = add_value_and_grad(Means(params, self.smooth, shard.index, number), batch, rng, totals)
            if found is None:
                continue
            grads, counts = found
            pack(grads, spec, f"{self.objective.label}.value_and_grad", out=grad, scale=counts)
            if curvature is not None:
                curvature += self.smooth.hessian(params, batch) * counts
        sums = {"loss": totals[1:2], "weight": totals[:1], "grad": grad}
        if curvature is not None:
            sums["hessian"] = curvature
        if state["validated"]:
            sums["validation"] = self._validate(params, shard, spec)
        return sums

    def means(self, state: State, sums: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return the means over all rows, on the host; infinite ones if a loss overflows.

        Raises:
            HeadwaterError: the first loss or gradient isn't finite, or all rows have the weight 0.
        """
        weight = float(to_host(sums["weight"])[0])
        if not weight > 0:
            raise HeadwaterError(
                f"{self.objective.label}: the weights of all training rows sum to {weight:g}."
            )
        means = {name: to_host(sums[name]) / weight for name in ("loss", "grad", "hessian") if name in sums}
        if not state["step"] and not all(np.isfinite(value).all() for value in means.values()):
            raise HeadwaterError(
                f"{self.objective.label}: the loss or its gradient isn't finite at the first parameters. "
                "Is there a NaN or an infinity among the features or the target? Filter or impute such rows."
            )
        return means

    def figures(self, sums: Mapping[str, Array], **figures: float) -> dict[str, float]:
        """Return what the history holds of an iteration."""
        if "validation" in sums:
            total, weight = to_host(sums["validation"])
            figures["validation_loss"] = float(total / weight) if weight else float("nan")
        return figures

    def penalized(self, state: State) -> np.ndarray:
        """Return the l1 penalty of each parameter, shape (parameters,)."""
        spec = spec_in(state)
        penalty = np.full(spec.size, self.l1)
        for name, _, where in spec.places():
            if name.rpartition(".")[2] in _UNPENALIZED:
                penalty[where] = 0.0
        return penalty

    def _validate(self, params: Tree, shard: Shard, spec: TreeSpec) -> np.ndarray:
        totals = self._zeros()
        if shard.validation is not None:
            rng = shard.rng(_LOSS)
            for number, batch in enumerate(self._blocks(shard.validation, spec)):
                add_loss(Means(params, self.objective, shard.index, number), batch, rng, totals)
        return totals[1::-1].copy()

    def _blocks(self, shard: Shard, spec: TreeSpec, hessian: bool = False) -> Iterator[Batch]:
        """A shard's rows; in larger blocks on a device, unless what an objective draws depends on the cuts."""
        objective = self.objective
        if getattr(objective, "draws", True):
            return shard.blocks()
        in_double = getattr(objective, "sums_in_double", None)
        width = spec.size
        if hessian:
            width += 4 * (objective.outputs or 1) ** 2 if isinstance(objective, LinearModel) else _WIDTH
        elif in_double is None or not in_double(spec.size):
            width = max(width, _WIDTH)
        return pass_over(shard, width)

    def _zeros(self) -> np.ndarray:
        return np.zeros(2 + len(self.objective.metrics))


def spec_in(state: State) -> TreeSpec:
    """Return how a state's vectors hold the parameters."""
    return load_spec(state["spec"], "float64")


def params_of(state: State) -> Tree:
    """Return a state's best parameters, in the dtype that was asked for."""
    vector = on_host(state["vector"] if "vector" in state else state["trial"])
    return unpack(vector.astype(state["dtype"]), spec_in(state))
