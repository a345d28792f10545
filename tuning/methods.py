"""Methods of search: which trials there are, and which of them go on with how large a budget. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..arguments import whole
from ..errors import ParameterError
from .space import Range, draw

#: most trials of a grid
MOST_TRIALS = 10_000


@dataclass(frozen=True)
class Rung:
    """One round of a search.

    Attributes:
        trials: how many take part, the best of the round before.
        budget: that each gets; None if the method gives none.
    """

    trials: int
    budget: int | None = None


class SearchMethod:
    """How a space is searched.

    Attributes:
        budget: name of the builder's parameter that is told the budget; None if there is none.
    """

    budget: str | None = None

    def configurations(self, space: Mapping[str, Range]) -> list[dict[str, Any]]:
        """Return the values of each trial."""
        raise NotImplementedError

    def rungs(self, trials: int) -> list[Rung]:
        """Return the rounds of a search with so many trials."""
        return [Rung(trials)]


@dataclass(frozen=True)
class GridSearch(SearchMethod):
    """All combinations of all values; the last parameter varies first.

    Example:
        >>> from headwater.tuning.space import choice
        >>> GridSearch().configurations({"a": choice([1, 2]), "b": choice("xy".split())})
        [{'a': 1, 'b': 'xy'}, {'a': 2, 'b': 'xy'}]
    """

    def configurations(self, space: Mapping[str, Range]) -> list[dict[str, Any]]:
        columns = []
        for name, values in space.items():
            given = values.values()
            if given is None:
                raise ParameterError(
                    f"a grid goes through all values of each parameter, and {name!r} is {values!r}. Give a list, as "
                    f"{{{name!r}: [0.001, 0.01, 0.1]}}, or draw from it: method=hw.RandomSearch(trials=20)."
                )
            columns.append(given)
        count = math.prod(map(len, columns))
        if count > MOST_TRIALS:
            raise ParameterError(
                f"the grid has {count:,} points, and {MOST_TRIALS:,} is the most. Give fewer values, or draw some: "
                "method=hw.RandomSearch(trials=100)."
            )
        return [dict(zip(space, point)) for point in itertools.product(*columns)]


@dataclass(frozen=True)
class RandomSearch(SearchMethod):
    """So many trials with values drawn at random.

    Args:
        trials: how many.
        seed: of the draws.

    Source: J. Bergstra and Y. Bengio, Random Search for Hyper-Parameter Optimization, JMLR 13 (2012).
    """

    trials: int
    seed: int = 0

    def __post_init__(self) -> None:
        whole(self.trials, "RandomSearch", "trials", 1)
        whole(self.seed, "RandomSearch", "seed")

    def configurations(self, space: Mapping[str, Range]) -> list[dict[str, Any]]:
        return [draw(space, self.seed, trial) for trial in range(self.trials)]


@dataclass(frozen=True)
class SuccessiveHalving(SearchMethod):
    """Many trials with a small budget; the best of them get a larger one, and so on.

    Each rung keeps one trial in ``factor`` and multiplies the budget by it, so that all rungs cost about the same.
    The last rung is the one that has one trial left, or the most budget. A trial that goes on is trained anew with its
    new budget, so that schedules of the learning rate fit it, and the winner is what `hw.train` gives.

    Args:
        trials: in the first rung.
        least: budget of each in the first rung.
        factor: 2 or more.
        most: the largest budget; a last trial that is alone gets it. None: what the rungs come to.
        budget: the builder's parameter that is told the budget, as "steps" or "epochs".
        seed: of the draws.

    Example:
        >>> SuccessiveHalving(trials=9, least=10).rungs(9)
        [Rung(trials=9, budget=10), Rung(trials=3, budget=30), Rung(trials=1, budget=90)]

    Source: K. Jamieson and A. Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization,
    AISTATS 2016.
    """

    trials: int
    least: int = 1
    factor: int = 3
    most: int | None = None
    budget: str = "steps"  # type: ignore[assignment]
    seed: int = 0

    def __post_init__(self) -> None:
        whole(self.trials, "SuccessiveHalving", "trials", 1)
        whole(self.least, "SuccessiveHalving", "least", 1)
        whole(self.factor, "SuccessiveHalving", "factor", 2)
        whole(self.seed, "SuccessiveHalving", "seed")
        if self.most is not None:
            whole(self.most, "SuccessiveHalving", "most", self.least)
        if not isinstance(self.budget, str) or not self.budget.isidentifier():
            raise ParameterError(
                f"SuccessiveHalving(budget={self.budget!r}): give the name of a parameter, as 'steps' or 'epochs'."
            )

    def configurations(self, space: Mapping[str, Range]) -> list[dict[str, Any]]:
        if self.budget in space:
            raise ParameterError(
                f"SuccessiveHalving says how many {self.budget} a trial gets, and so does the space. Take "
                f"{self.budget!r} out of the space."
            )
        return [draw(space, self.seed, trial) for trial in range(self.trials)]

    def rungs(self, trials: int) -> list[Rung]:
        found, left, budget = [], trials, self.least
        while True:
            budget = budget if self.most is None else min(budget, self.most)
            if left == 1 and self.most is not None:
                budget = self.most
            found.append(Rung(left, budget))
            if left == 1 or budget == self.most:
                return found
            left, budget = max(1, left // self.factor), budget * self.factor


def best_first(scores: Mapping[int, float | None], maximize: bool) -> list[int]:
    """Return trials from the best to the worst; of equal ones the lower number first, failed ones left out.

    Args:
        scores: trial to score; None if it failed.
        maximize: whether a higher score is better.

    Example:
        >>> best_first({0: 0.5, 1: None, 2: 0.7, 3: 0.5}, maximize=True)
        [2, 0, 3]
    """
    known = [(-score if maximize else score, trial) for trial, score in scores.items() if score is not None]
    return [trial for _, trial in sorted(known)]


def check_method(method: Any) -> SearchMethod:
    """Return a method.

    Raises:
        ParameterError: it isn't one.
    """
    if isinstance(method, SearchMethod):
        return method
    hint = " Call it, with its arguments." if isinstance(method, type) else ""
    known: Sequence[str] = ("hw.GridSearch()", "hw.RandomSearch(trials=…)", "hw.SuccessiveHalving(trials=…)")
    raise ParameterError(f"search(method={method!r}): give one of {', '.join(known)}.{hint}")
