"""hw.search: trains models with different hyperparameters side by side on the same rows, and finds the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ..arguments import whole
from ..errors import (
    HeadwaterError,
    ParameterError,
    TrainingError,
    TypeMismatchError,
)
from ..model import Model
from ..pipeline import Dataset
from ..runtime.report import RunReport
from ..session import Session, session_or_current
from .methods import GridSearch, SearchMethod, best_first, check_method
from .space import checked_space
from .trial import Outcome, Trial, check_builder, declare

#: most trials of one run: what the driver does for each grows with the stages of a plan
MOST_TRIALS_A_RUN = 200
#: columns of the table of trials that aren't parameters
_RESERVED = ("trial", "rung", "budget", "score", "loss", "error")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: the best model, computed.
        best_params: its values, by name.
        score: its score, or its loss if the search had no score.
        trials: a row for each trial in each rung: trial, rung, budget, the parameters, score, loss, error; from the
            first rung to the last, by trial. The score of a trial that failed is null, and its error says why.
        reports: of the runs: one for each rung of up to 200 trials, and more where a trial that fails had to be found.
    """

    best: Model
    best_params: dict[str, Any]
    score: float
    trials: pa.Table
    reports: tuple[RunReport, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        count = len(set(self.trials.column("trial").to_pylist()))
        return f"SearchResult(score={self.score:.6g}, best_params={self.best_params!r}, {count} trials)"


def search(
    build: Callable[..., Model],
    space: Mapping[str, Any],
    *,
    score: Callable[[Model], Dataset] | None = None,
    maximize: bool | None = None,
    method: SearchMethod | None = None,
    workers: int | None = 1,
    session: Session | None = None,
) -> SearchResult:
    """Train models with different hyperparameters, and return the best. Runs now.

    The trials of a rung are tasks of one run: the session's workers take them one after the other, and a trial
    that a worker takes with it is trained again elsewhere. Rows that trials share are prepared once and kept on the
    nodes until the search is over. The result is the same for any number of workers, and whatever dies.

    Args:
        build: declares the model for given values, as ``lambda lr: hw.train(…)``. It is called with the values
            by name, and with the budget if the method has one.
        space: name to a list of values, or to one of ``hw.space.choice``, ``uniform``, ``log_uniform``, ``integer``.
        score: from a model to a dataset with one row and one number, as
            ``lambda model: valid.predict(model).agg(hw.metrics.auc("y", "probability"))``. None takes the loss: of
            ``hw.train``'s validation rows, or without any, of its last batch; the least is best.
        maximize: whether a higher score is better; to be given with ``score``.
        method: ``hw.GridSearch()``, ``hw.RandomSearch(trials)`` or ``hw.SuccessiveHalving(trials)``; None is the grid.
        workers: most that train one model together. With 1, as many trials as there are workers run side by
            side. The models have the same bits for any number. None leaves it to ``build``.
        session: where to run; None takes the current one.

    Returns:
        The best model with its values and score, and a table of all trials. Of equal scores the first trial's counts.

    Raises:
        ParameterError: an empty space, a name that ``build`` doesn't take, or a score that isn't one number.
        TypeMismatchError: ``build`` gives something else than a model that is to be trained.
        TrainingError: all trials of a rung failed.
        HeadwaterError: the user's code or the cluster failed.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"x": [0.0, 1.0, 2.0, 3.0], "y": [1.0, 3.0, 5.0, 7.0]})
        >>> found = hw.search(
        ...     lambda l2: hw.train(
        ...         rows, target="y", objective=hw.objectives.LinearRegression(l2=l2), optimizer=hw.optim.lbfgs()
        ...     ),
        ...     space={"l2": [10.0, 1.0, 0.0]},
        ...     score=lambda model: rows.predict(model).agg(hw.metrics.rmse("y", "prediction")),
        ...     maximize=False,
        ...     session=hw.Session("inline"),
        ... )
        >>> found.best_params, round(found.score, 3)
        ({'l2': 0.0}, 0.0)
    """
    ranges = checked_space(space)
    method = GridSearch() if method is None else check_method(method)
    check_builder(build, list(ranges), method.budget)
    upward = _direction(score, maximize)
    if workers is not None:
        workers = whole(workers, "search", "workers", 1)
    for name in ranges:
        if name in _RESERVED:
            raise ParameterError(
                f"search(): {name!r} is a column of the table of trials. Give the parameter another name, as "
                f"'{name}_value'."
            )
    configurations = method.configurations(ranges)
    session = session_or_current(session)
    standing, records, keeping = list(range(len(configurations))), [], _Keeping(session)
    reports: list[RunReport] = []
    try:
        for number, rung in enumerate(method.rungs(len(configurations))):
            budget = None if rung.budget is None or method.budget is None else (method.budget, rung.budget)
            entrants = sorted(standing[: rung.trials])
            trials = [declare(i, configurations[i], budget, build, score, workers) for i in entrants]
            keeping.note(trials)
            outcomes: dict[int, Outcome] = {}
            for start in range(0, len(trials), MOST_TRIALS_A_RUN):
                some = trials[start : start + MOST_TRIALS_A_RUN]
                outcomes |= run_rung(session, some, f"search, rung {number}", reports)
            records += [(trial, number, outcomes[trial.number]) for trial in trials]
            standing = best_first({i: outcome.score for i, outcome in outcomes.items()}, upward)
            if not standing:
                raise _all_failed(trials, outcomes)
        winner = next(trial for trial in trials if trial.number == standing[0])
        best = winner.model.compute(session)
    finally:
        keeping.let_go()
    found = outcomes[winner.number].score
    assert found is not None
    return SearchResult(best, dict(winner.params), found, trials_table(list(ranges), records), tuple(reports))


def run_rung(
    session: Session, trials: Sequence[Trial], name: str, reports: list[RunReport]
) -> dict[int, Outcome]:
    """Train and score trials in one run, and return what came of each, by its number.

    If the run fails, its halves are run by themselves, and so on down to the trial that fails: what was trained before
    is kept, and isn't trained again.

    Args:
        session: where.
        trials: at least one.
        name: of the run.
        reports: the run's is appended.

    Raises:
        HeadwaterError: it failed by the user's code, or for reasons of the system.
    """
    outputs = {output: dataset for trial in trials for output, dataset in trial.outputs().items()}
    try:
        with session.run(outputs, name) as result:
            reports.append(result.report)
            return {trial.number: trial.outcome(result.table) for trial in trials}
    except HeadwaterError as error:
        if not _may_be_a_trials(error):
            raise
        if error.report is not None:
            reports.append(error.report)
        if len(trials) == 1:
            return {trials[0].number: Outcome(None, None, str(error))}
    middle = len(trials) // 2
    halves = trials[:middle], trials[middle:]
    first, second = (run_rung(session, half, name, reports) for half in halves)
    return first | second


def trials_table(names: Sequence[str], records: Sequence[tuple[Trial, int, Outcome]]) -> pa.Table:
    """Make the table of `SearchResult.trials`.

    Args:
        names: of the parameters.
        records: trial, rung and outcome.
    """
    columns: dict[str, pa.Array] = {
        "trial": pa.array([trial.number for trial, _, _ in records], pa.int64()),
        "rung": pa.array([rung for _, rung, _ in records], pa.int64()),
        "budget": pa.array([trial.budget for trial, _, _ in records], pa.int64()),
    }
    for name in names:
        columns[name] = _column([trial.params[name] for trial, _, _ in records])
    for name, kind in (("score", pa.float64()), ("loss", pa.float64()), ("error", pa.string())):
        columns[name] = pa.array([getattr(outcome, name) for _, _, outcome in records], kind)
    return pa.table(columns)


class _Keeping:
    """What a search has the nodes keep until it is over."""

    def __init__(self, session: Session):
        self._session = session
        self._nodes: dict[str, Any] = {}

    def note(self, trials: Sequence[Trial]) -> None:
        """Trials are about to run."""
        self._nodes.update((node.key, node) for trial in trials for node in trial.kept)

    def let_go(self) -> None:
        """The search is over, or has failed."""
        for node in self._nodes.values():
            try:
                self._session.unpersist(node)
            except HeadwaterError:  # the cluster is gone, and what it kept with it
                return


def _may_be_a_trials(error: HeadwaterError) -> bool:
    """Whether an error may come from what a trial's values do to the numbers, and not from code or cluster."""
    return isinstance(error, TrainingError) or type(error) is HeadwaterError


def _direction(score: Any, maximize: bool | None) -> bool:
    if score is None:
        if maximize:
            raise ParameterError("search(maximize=True) needs a score=…; a loss is made small.")
        return False
    if not callable(score):
        raise TypeMismatchError(
            f"search(score={score!r}): give a function of a model, as "
            "lambda model: valid.predict(model).agg(hw.metrics.auc('y', 'probability'))."
        )
    if not isinstance(maximize, bool):
        raise ParameterError(
            "search(score=…): say which score is better: maximize=True for the higher one, as of auc or accuracy; "
            "maximize=False for the lower one, as of rmse or log_loss."
        )
    return maximize


def _all_failed(trials: Sequence[Trial], outcomes: Mapping[int, Outcome]) -> TrainingError:
    told = [f"{trial}: {outcomes[trial.number].error}" for trial in trials[:3]]
    more = f"\nand {len(trials) - 3} more" if len(trials) > 3 else ""
    return TrainingError(f"search(): all {len(trials)} trials failed.\n" + "\n".join(told) + more)


def _column(values: Sequence[Any]) -> pa.Array:
    """Values of a parameter as a column; as texts if they aren't of one plain type."""
    plain = (bool, int, float, str)
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or (len(kinds) <= 1 and kinds <= set(plain)):
        wide = pa.float64() if float in kinds else None
        return pa.array(values, wide)
    return pa.array([None if value is None else str(value) for value in values], pa.string())
