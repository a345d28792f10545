"""Solvers: the settings of second-order methods, which take all rows at each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...arguments import whole
from ...errors import ParameterError, did_you_mean
from .checks import real, written

LINE_SEARCHES = ("strong_wolfe", "backtracking")


@dataclass(frozen=True, repr=False)
class Solver:
    """A method that minimizes over all rows at once, by name and settings; an objective has the program for it.

    Attributes:
        name: "lbfgs" or "newton".
        options: the settings, all of them.
    """

    name: str
    options: Mapping[str, Any]

    def parameters(self) -> Any:
        """Return what decides its results, for the lineage key."""
        return (self.name, tuple(self.options.items()))

    def __hash__(self) -> int:
        return hash(self.parameters())

    def __repr__(self) -> str:
        return written(self.name, self.options)


def lbfgs(
    max_iterations: int = 100,
    *,
    history: int = 10,
    tolerance: float = 1e-6,
    line_search: Literal["strong_wolfe", "backtracking"] = "strong_wolfe",
) -> Solver:
    """L-BFGS: steps by an approximation of the Hessian from the last gradients.

    Args:
        max_iterations: the most there are, at least 1.
        history: how many pairs of steps and gradient changes are kept, at least 1.
        tolerance: it ends when no element of the gradient is larger than this.
        line_search: how the length of a step is found.

    Raises:
        ParameterError: a setting out of range.

    Source: D. Liu and J. Nocedal, On the limited memory BFGS method for large scale optimization,
    Mathematical Programming 45 (1989).

    Example:
        >>> lbfgs(50).options["history"]
        10
    """
    if line_search not in LINE_SEARCHES:
        raise ParameterError(
            f"lbfgs(line_search={line_search!r}): {did_you_mean(str(line_search), LINE_SEARCHES)}"
        )
    options = {
        "max_iterations": whole(max_iterations, "lbfgs", "max_iterations", 1),
        "history": whole(history, "lbfgs", "history", 1),
        "tolerance": real(tolerance, "lbfgs", "tolerance"),
        "line_search": line_search,
    }
    return Solver("lbfgs", options)


def newton(max_iterations: int = 50, *, tolerance: float = 1e-8, damping: float = 0.0) -> Solver:
    """Newton's method: steps by the Hessian itself, for models of some hundred parameters at most.

    Args:
        max_iterations: the most there are, at least 1.
        tolerance: it ends when no element of the gradient is larger than this.
        damping: is added to the diagonal of the Hessian; above 0 for features that depend on each other.

    Raises:
        ParameterError: a setting out of range.

    Example:
        >>> newton(damping=1e-6)
        newton(max_iterations=50, tolerance=1e-08, damping=1e-06)
    """
    options = {
        "max_iterations": whole(max_iterations, "newton", "max_iterations", 1),
        "tolerance": real(tolerance, "newton", "tolerance"),
        "damping": real(damping, "newton", "damping"),
    }
    return Solver("newton", options)
