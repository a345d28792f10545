"""Newton: Newton's method over all rows, as a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ParameterError
from ..backend import Array
from ..objectives.direct import on_host, refuse_epochs
from ..objectives.objective import Objective
from .full_batch import FullBatch, params_of, spec_in
from .line_search import DECREASE
from .program import DataInfo, Settings, Shard, State, Tree

#: halvings of a step before it is given up
MOST_HALVINGS = 20
#: most parameters: the Hessian has the square of that many elements
MOST_PARAMETERS = 5000


class Newton:
    """Newton's method over all rows, for objectives that have a ``hessian``; all in float64.

    A step that doesn't lower the loss is halved. A Hessian that isn't positive definite gets more damping: a multiple
    of the identity, as much as it takes.

    Args:
        objective: what to minimize; ``hessian(params, batch)`` gives the mean Hessian, in packed order.
        settings: ``optimizer`` is `headwater.ops.optim.solvers.newton`.

    Raises:
        ParameterError: an objective without a Hessian, or with an l1 penalty.

    Source: Nocedal and Wright, Numerical Optimization (2006), section 3.4.
    """

    def __init__(self, objective: Objective, settings: Settings):
        if not hasattr(objective, "hessian"):
            raise ParameterError(
                f"newton needs an objective with hessian(params, batch), and {objective.label} has none. "
                "Use hw.optim.lbfgs()."
            )
        refuse_epochs("newton", settings)
        self.batch = FullBatch(objective, "newton")
        if self.batch.l1:
            raise ParameterError(
                f"newton takes no l1 penalty, whose slope jumps at 0, and {objective.label} has l1={self.batch.l1:g}. "
                "Use hw.optim.lbfgs()."
            )
        self.options: Mapping[str, Any] = settings.optimizer.options

    def start(self, info: DataInfo) -> State:
        """Return the first state.

        Raises:
            ParameterError: too many parameters for a Hessian.
        """
        state = {**self.batch.start(info, "float64"), "halvings": 0, "stalled": False}
        size = spec_in(state).size
        if size > MOST_PARAMETERS:
            raise ParameterError(
                f"newton: {self.batch.objective.label} has {size} parameters here, so the Hessian would have "
                f"{size}**2 elements. Use hw.optim.lbfgs()."
            )
        return state

    def statistics(self, state: State, shard: Shard) -> Mapping[str, Array]:
        """Return a shard's sums of loss, gradient and Hessian at the point on trial."""
        return self.batch.statistics(state, shard, hessian=True)

    def update(self, state: State, sums: Mapping[str, Array]) -> State:
        """Return the state with the next point on trial."""
        state, sums = on_host(state), on_host(sums)
        means = self.batch.means(state, sums)
        loss, grad, hessian = float(means["loss"][0]), means["grad"], means["hessian"]
        after = {**state, "step": state["step"] + 1}
        if "vector" in state:
            length = 0.5 ** state["halvings"]
            if not loss <= state["loss"] + DECREASE * length * state["slope"] + state["noise"]:
                return self._halve(after)
        largest = float(np.abs(grad).max())
        iteration = state["iteration"] + ("vector" in state)
        after |= {
            "vector": state["trial"],
            "loss": loss,
            "iteration": iteration,
            "halvings": 0,
            "history": [*state["history"], self.batch.figures(sums, loss=loss, gradient=largest)],
        }
        if largest <= self.options["tolerance"] or iteration >= self.options["max_iterations"]:
            return {**after, "done": True}
        direction = -_solve(hessian, grad, self.options["damping"])
        slope, noise = float(direction @ grad), 4 * float(np.finfo(np.float64).eps) * abs(loss)
        if -slope <= noise:  # what could be gained is rounding
            return {**after, "done": True}
        trial = after["vector"] + direction
        return {**after, "direction": direction, "slope": slope, "noise": noise, "trial": trial}

    def finished(self, state: State) -> bool:
        """Say whether the gradient is small, nothing lowers the loss, or there were enough iterations."""
        return bool(state["done"])

    def metrics(self, state: State) -> dict[str, float]:
        """Return "loss" with penalties and "gradient", the largest element of it, of the best point so far."""
        return dict(state["history"][-1]) if state["history"] else {}

    def params(self, state: State) -> Tree:
        """Return the parameters of the best point so far."""
        return params_of(state)

    def progress(self, state: State) -> float:
        """Return the share of the allowed iterations that is done."""
        return 1.0 if state["done"] else state["iteration"] / self.options["max_iterations"]

    def _halve(self, state: State) -> State:
        halvings = state["halvings"] + 1
        if halvings > MOST_HALVINGS:
            return {**state, "trial": state["vector"], "done": True, "stalled": True}
        trial = state["vector"] + 0.5**halvings * state["direction"]
        return {**state, "halvings": halvings, "trial": trial}


def _solve(hessian: np.ndarray, grad: np.ndarray, damping: float) -> np.ndarray:
    """Solve for the step, with more damping until the matrix is positive definite."""
    size = float(np.abs(np.diag(hessian)).max()) or 1.0
    identity = np.eye(len(grad))
    while True:
        try:
            lower = np.linalg.cholesky((hessian + hessian.T) / 2 + damping * identity)
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-12 * size)
            continue
        return np.linalg.solve(lower.T, np.linalg.solve(lower, grad))
