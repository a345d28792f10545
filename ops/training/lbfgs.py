"""Lbfgs: limited-memory BFGS over all rows, as a program; OWL-QN where there is an l1 penalty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import Array
from ..objectives.direct import on_host, refuse_epochs
from ..objectives.objective import Objective
from .full_batch import FullBatch, params_of
from .line_search import DECREASE, LineSearch, Point
from .program import DataInfo, Settings, Shard, State, Tree

#: halvings of a step by backtracking before it is given up
MOST_HALVINGS = 30


class Lbfgs:
    """L-BFGS over all rows. Every evaluation is one step: of the first point, and of each length of a line search.

    With an l1 penalty it is OWL-QN: steps stay in one orthant, so weights become exactly 0, and lengths are found by
    backtracking. Vectors of the state are float64; the loss is evaluated in the dtype of the parameters. It ends when
    the gradient is small, or when no length along a direction lowers the loss, as low as rounding lets it.

    Args:
        objective: what to minimize.
        settings: ``optimizer`` is `headwater.ops.optim.solvers.lbfgs`.

    Source: Nocedal and Wright, Numerical Optimization (2006), chapter 7; Andrew and Gao, Scalable training of
    L1-regularized log-linear models (2007).
    """

    def __init__(self, objective: Objective, settings: Settings):
        refuse_epochs("lbfgs", settings)
        self.batch = FullBatch(objective, "lbfgs")
        self.options: Mapping[str, Any] = settings.optimizer.options

    def start(self, info: DataInfo) -> State:
        """Return the first state."""
        return {**self.batch.start(info), "pairs": [], "search": None, "stalled": False}

    def statistics(self, state: State, shard: Shard) -> Mapping[str, Array]:
        """Return a shard's sums of loss and gradient at the point on trial."""
        return self.batch.statistics(state, shard)

    def update(self, state: State, sums: Mapping[str, Array]) -> State:
        """Return the state with the next point on trial."""
        state, sums = on_host(state), on_host(sums)
        means = self.batch.means(state, sums)
        loss, grad = float(means["loss"][0]), means["grad"]
        after = {**state, "step": state["step"] + 1}
        if self.batch.l1:
            loss += float(self.batch.penalized(state) @ np.abs(state["trial"]))
        if state["step"] == 0:
            return self._direct(self._arrived(after, state["trial"], loss, grad, sums))
        if self.batch.l1 or self.options["line_search"] == "backtracking":
            return self._backtrack(after, loss, grad, sums)
        return self._search(after, loss, grad, sums)

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

    def _arrived(
        self, state: State, vector: np.ndarray, loss: float, grad: np.ndarray, sums: Mapping[str, Array]
    ) -> State:
        """Take a point as the next iterate, and remember the step to it."""
        pairs = state["pairs"]
        if "vector" in state:
            step, change = vector - state["vector"], grad - state["grad"]
            curvature = float(step @ change)
            if curvature > np.finfo(np.float64).eps * float(change @ change):
                pairs = [*pairs, (step, change, 1 / curvature)][-self.options["history"] :]
        steep = self._pseudo_gradient(state, vector, grad) if self.batch.l1 else grad
        largest = float(np.abs(steep).max())
        first = "vector" not in state
        iteration = state["iteration"] + (not first)
        return {
            **state,
            "vector": vector,
            "loss": loss,
            "grad": grad,
            "steepest": steep,
            "pairs": pairs,
            "search": None,
            "best": None,
            "iteration": iteration,
            "history": [*state["history"], self.batch.figures(sums, loss=loss, gradient=largest)],
            "done": largest <= self.options["tolerance"] or iteration >= self.options["max_iterations"],
        }

    def _direct(self, state: State) -> State:
        """Choose a direction from an iterate, and the first length along it."""
        if state["done"]:
            return state
        steep = state["steepest"]
        direction = -_two_loops(state["pairs"], steep)
        if self.batch.l1:
            direction = np.where(direction * steep < 0, direction, 0.0)
        slope = float(direction @ steep)
        if not slope < 0:
            direction, slope, state = -steep, -float(steep @ steep), {**state, "pairs": []}
        length = 1.0 if state["pairs"] else min(1.0, 1.0 / float(np.abs(steep).sum()))
        noise = 10 * float(np.finfo(state["evaluated"]).eps) * abs(state["loss"])
        search = LineSearch(Point(0.0, state["loss"], slope), length, noise)
        return self._try({**state, "direction": direction, "search": search, "best": None}, length)

    def _try(self, state: State, length: float) -> State:
        trial = state["vector"] + length * state["direction"]
        if self.batch.l1:  # what would leave the orthant stays on its edge
            orthant = np.where(state["vector"] != 0, np.sign(state["vector"]), -np.sign(state["steepest"]))
            free = self.batch.penalized(state) == 0
            trial = np.where(free | (trial * orthant > 0), trial, 0.0)
        trial = trial.astype(state["evaluated"]).astype(np.float64)
        if np.array_equal(trial, state["vector"]):
            return self._gave_up(state)
        return {**state, "trial": trial}

    def _search(self, state: State, loss: float, grad: np.ndarray, sums: Mapping[str, Array]) -> State:
        search = state["search"].told(loss, float(grad @ state["direction"]))
        if search.verdict == "accept":
            return self._direct(self._arrived(state, state["trial"], loss, grad, sums))
        if search.low.length == state["search"].length:  # the best so far
            state = {**state, "best": (state["trial"], loss, grad, dict(sums))}
        if search.verdict == "try":
            return self._try({**state, "search": search}, search.length)
        return self._gave_up(state)

    def _backtrack(self, state: State, loss: float, grad: np.ndarray, sums: Mapping[str, Array]) -> State:
        expected = DECREASE * float(state["steepest"] @ (state["trial"] - state["vector"]))
        if loss <= state["loss"] + expected:
            return self._direct(self._arrived(state, state["trial"], loss, grad, sums))
        search: LineSearch = state["search"]
        if search.tries + 1 >= MOST_HALVINGS:
            return self._gave_up(state)
        halved = LineSearch(search.start, search.length / 2, search.noise, tries=search.tries + 1)
        return self._try({**state, "search": halved}, halved.length)

    def _gave_up(self, state: State) -> State:
        """Take the best point of a search that found no good one; else forget the pairs; else it is the end."""
        if state["best"] is not None:
            vector, loss, grad, sums = state["best"]
            return self._direct(self._arrived(state, vector, loss, grad, sums))
        if state["pairs"]:
            return self._direct({**state, "pairs": []})
        return {**state, "trial": state["vector"], "search": None, "done": True, "stalled": True}

    def _pseudo_gradient(self, state: State, vector: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """Return the derivative of loss and l1 penalty in the direction in which that falls most steeply."""
        penalty = self.batch.penalized(state)
        right, left = grad + penalty, grad - penalty
        at_zero = np.where(right < 0, right, np.where(left > 0, left, 0.0))
        return np.where(vector > 0, right, np.where(vector < 0, left, at_zero))


def _two_loops(pairs: list[tuple[np.ndarray, np.ndarray, float]], grad: np.ndarray) -> np.ndarray:
    """Return the approximate inverse Hessian times a gradient (Nocedal and Wright, algorithm 7.4)."""
    result = grad.copy()
    factors = []
    for step, change, inverse in reversed(pairs):
        factor = inverse * float(step @ result)
        factors.append(factor)
        result -= factor * change
    if pairs:
        step, change, inverse = pairs[-1]
        result /= inverse * float(change @ change)
    for (step, change, inverse), factor in zip(pairs, reversed(factors)):
        result += (factor - inverse * float(change @ result)) * step
    return result
