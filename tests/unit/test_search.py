"""Hyperparameter search: draws, grids, rungs, what a bad call is told, and that the best is what hw.train gives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

import headwater as hw
from headwater.errors import ParameterError, TrainingError, TypeMismatchError, UserFunctionError
from headwater.tuning.methods import Rung, best_first
from headwater.tuning.space import checked_space, draw

SPACE = {
    "lr": hw.space.log_uniform(1e-4, 1e-1),
    "l2": hw.space.uniform(0.0, 2.0),
    "width": hw.space.integer(8, 512, log=True),
    "kind": hw.space.choice(["a", "b", "c"]),
}
MEASURE = {"score": lambda model: scored(model), "maximize": True}


@pytest.fixture(scope="module")
def session() -> Iterator[hw.Session]:
    with hw.Session("inline", journal=False, progress=False) as session:
        yield session


def some_rows(count: int, seed: int) -> hw.Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2))
    y = (x @ [2.0, -1.0] + rng.normal(size=count) > 0).astype(np.int64)
    return hw.from_numpy({"a": x[:, 0], "b": x[:, 1], "y": y})


ROWS, VALID = some_rows(600, 0).filter(hw.col("a") < 3), some_rows(200, 1)


def logistic(lr: float = 0.1, l2: float = 0.0, steps: int = 8) -> hw.Model:
    return hw.train(
        ROWS,
        target="y",
        objective=hw.objectives.LogisticRegression(l2=l2),
        optimizer=hw.optim.sgd(lr),
        steps=steps,
        batch_size=128,
        strategy=hw.AllReduce(shards=2),
    )


def scored(model: hw.Model) -> hw.Dataset:
    return VALID.predict(model).agg(hw.metrics.auc("y", "probability"))


# -- spaces --------------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_trial_and_name_alone():
    fewer = {name: SPACE[name] for name in ("width", "lr")}
    for trial in range(20):
        drawn = draw(SPACE, 7, trial)
        assert draw(SPACE, 7, trial) == drawn
        assert draw(fewer, 7, trial) == {name: drawn[name] for name in fewer}
    assert draw(SPACE, 8, 0) != draw(SPACE, 7, 0)
    again = hw.RandomSearch(trials=30, seed=7).configurations(SPACE)
    assert again[:20] == hw.RandomSearch(trials=20, seed=7).configurations(SPACE)


def test_draws_are_spread_as_they_say():
    drawn = hw.RandomSearch(trials=4000, seed=1).configurations(SPACE)
    for name, low, high in (("lr", 1e-4, 1e-1), ("l2", 0.0, 2.0), ("width", 8, 512)):
        assert all(low <= point[name] <= high for point in drawn)
    # a third of the decades, half of the range, half of the doublings, a third of the options
    shares = {
        "lr": (sum(point["lr"] < 1e-3 for point in drawn), 1 / 3),
        "l2": (sum(point["l2"] < 1.0 for point in drawn), 1 / 2),
        "width": (sum(point["width"] < 64 for point in drawn), math.log(64 / 8) / math.log(513 / 8)),
        "kind": (sum(point["kind"] == "b" for point in drawn), 1 / 3),
    }
    for name, (found, share) in shares.items():
        assert abs(found / 4000 - share) < 5 * math.sqrt(share * (1 - share) / 4000), name
    assert {type(point["width"]) for point in drawn} == {int}


def test_both_ends_of_a_range_of_integers_are_drawn():
    for values in (hw.space.integer(1, 3), hw.space.integer(1, 3, log=True)):
        drawn = hw.RandomSearch(trials=200).configurations({"n": values})
        assert {point["n"] for point in drawn} == {1, 2, 3}


@pytest.mark.parametrize(
    "make",
    [
        lambda: hw.space.uniform(1.0, 1.0),
        lambda: hw.space.uniform(0.0, math.inf),
        lambda: hw.space.log_uniform(0.0, 1.0),
        lambda: hw.space.integer(3, 2),
        lambda: hw.space.integer(0, 4, log=True),
        lambda: hw.space.integer(0.5, 4),
        lambda: hw.space.choice([]),
        lambda: hw.space.choice("abc"),
        lambda: checked_space({}),
        lambda: checked_space({"a b": [1]}),
        lambda: checked_space({"a": 0.1}),
        lambda: checked_space(["a"]),
    ],
)
def test_a_range_that_holds_nothing_is_refused(make):
    with pytest.raises((ParameterError, TypeMismatchError)):
        make()


# -- methods -------------------------------------------------------------------------------------------


def test_a_grid_has_each_point_once_and_the_last_parameter_varies_first():
    points = hw.GridSearch().configurations(
        checked_space({"a": [1, 2], "b": np.array([0.5, 1.5]), "c": hw.space.integer(0, 2)})
    )
    assert points == [{"a": a, "b": b, "c": c} for a in (1, 2) for b in (0.5, 1.5) for c in (0, 1, 2)]


def test_a_grid_needs_values_and_not_too_many():
    with pytest.raises(ParameterError, match=r"'lr'.*RandomSearch"):
        hw.GridSearch().configurations({"lr": SPACE["lr"]})
    with pytest.raises(ParameterError, match="1,000,000 points"):
        hw.GridSearch().configurations(checked_space({name: list(range(100)) for name in "abc"}))


def rungs_by_hand(trials: int, least: int, factor: int, most: int | None) -> list[tuple[int, int]]:
    """The rule as it is written: keep one in `factor` with `factor` times as much, end with one trial or the most."""
    rungs = []
    for k in range(100):
        count, budget = max(1, trials // factor**k), least * factor**k
        if most is not None and (count == 1 or budget >= most):
            return [*rungs, (count, most)]
        rungs.append((count, budget))
        if count == 1:
            return rungs
    raise AssertionError("it doesn't end")


@pytest.mark.parametrize("trials", [1, 2, 3, 8, 9, 10, 27, 81, 100])
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize(("least", "most"), [(1, None), (5, None), (1, 1), (2, 9), (1, 27), (3, 1000)])
def test_rungs_follow_the_rule(trials: int, factor: int, least: int, most: int | None):
    method = hw.SuccessiveHalving(trials, least=least, factor=factor, most=most)
    found = method.rungs(trials)
    assert [(rung.trials, rung.budget) for rung in found] == rungs_by_hand(trials, least, factor, most)


def test_the_rungs_of_the_paper():
    assert hw.SuccessiveHalving(81, least=1, most=81).rungs(81) == [
        Rung(81, 1), Rung(27, 3), Rung(9, 9), Rung(3, 27), Rung(1, 81)
    ]  # fmt: skip
    assert hw.SuccessiveHalving(9, least=9, most=81).rungs(9)[-1] == Rung(1, 81)
    assert hw.RandomSearch(5).rungs(5) == hw.GridSearch().rungs(5) == [Rung(5)]


def test_the_best_come_first_ties_by_number_and_failures_not_at_all():
    scores = {4: 1.0, 1: None, 3: 2.0, 0: 1.0, 2: -1.0}
    assert best_first(scores, maximize=True) == [3, 0, 4, 2]
    assert best_first(scores, maximize=False) == [2, 0, 4, 3]
    assert best_first({0: None}, maximize=True) == []


# -- searches ------------------------------------------------------------------------------------------


def test_a_grid_finds_the_best_and_the_model_is_what_train_gives(session: hw.Session):
    found = hw.search(logistic, {"lr": [0.001, 1.0], "l2": [0.0, 5.0]}, **MEASURE, session=session)
    rows = found.trials.to_pylist()
    assert [(row["trial"], row["rung"], row["lr"], row["l2"]) for row in rows] == [
        (0, 0, 0.001, 0.0), (1, 0, 0.001, 5.0), (2, 0, 1.0, 0.0), (3, 0, 1.0, 5.0)
    ]  # fmt: skip
    for row in rows:
        model = logistic(row["lr"], row["l2"])
        assert row["score"] == scored(model).compute(session).column(0)[0].as_py()
        assert row["error"] is None
    assert found.score == max(row["score"] for row in rows)
    assert found.best.digest() == logistic(**found.best_params).digest(session)
    assert found.best.predict_batch({"a": 1.0, "b": 0.0})["prediction"].to_pylist() == [1]


def test_the_number_of_workers_of_a_trial_changes_nothing(session: hw.Session):
    alone, open_ = (
        hw.search(logistic, {"lr": [0.1, 1.0]}, **MEASURE, workers=workers, session=session)
        for workers in (1, None)
    )
    assert alone.trials.equals(open_.trials)
    assert alone.best.digest() == open_.best.digest()


def test_halving_gives_each_rung_its_budget_and_the_best_of_the_one_before(session: hw.Session):
    told: list[tuple[float, int]] = []

    def build(lr: float, steps: int) -> hw.Model:
        told.append((lr, steps))
        return logistic(lr, steps=steps)

    method = hw.SuccessiveHalving(trials=6, least=2, factor=2, seed=3)
    space = {"lr": hw.space.log_uniform(1e-3, 1e1)}
    found = hw.search(build, space, **MEASURE, method=method, session=session)
    rows = found.trials.to_pylist()
    assert [(row["rung"], row["budget"]) for row in rows] == [(0, 2)] * 6 + [(1, 4)] * 3 + [(2, 8)]
    assert told == [(row["lr"], row["budget"]) for row in rows]
    for rung, count in ((0, 3), (1, 1)):
        scores = {row["trial"]: row["score"] for row in rows if row["rung"] == rung}
        promoted = sorted(best_first(scores, maximize=True)[:count])
        assert [row["trial"] for row in rows if row["rung"] == rung + 1] == promoted
    assert found.best.digest() == logistic(**found.best_params, steps=8).digest(session)
    again = hw.search(build, space, **MEASURE, method=method, session=session)
    assert again.trials.equals(found.trials)


def test_prepared_rows_are_computed_once_and_given_back(session: hw.Session):
    rows = some_rows(300, 5).map_batches(lambda batch: {**batch, "b": batch["b"] * 2}, schema=ROWS.schema)

    def build(lr: float, steps: int) -> hw.Model:
        return hw.train(
            rows,
            target="y",
            objective=hw.objectives.LogisticRegression(),
            optimizer=hw.optim.sgd(lr),
            steps=steps,
        )

    def attempts(report) -> list[int]:
        return [stage.attempts for stage in report.stages if "> map " in stage.label]

    method = hw.SuccessiveHalving(trials=4, least=1, factor=2)
    found = hw.search(build, {"lr": hw.space.uniform(0.1, 1.0)}, method=method, session=session)
    assert [attempts(report) for report in found.reports] == [[1], [0], [0]]
    again = hw.search(build, {"lr": [0.1]}, method=hw.SuccessiveHalving(1), session=session)
    assert attempts(again.reports[0]) == [1]  # nothing was left on the nodes


def test_a_large_rung_is_cut_into_runs_and_gives_the_same(
    session: hw.Session, monkeypatch: pytest.MonkeyPatch
):
    space = {"lr": [0.1, 0.2, 0.3, 0.4, 0.5]}
    whole = hw.search(logistic, space, **MEASURE, session=session)
    monkeypatch.setattr("headwater.tuning.search.MOST_TRIALS_A_RUN", 2)
    cut = hw.search(logistic, space, **MEASURE, session=session)
    assert (len(whole.reports), len(cut.reports)) == (1, 3)
    assert cut.trials.equals(whole.trials)


def test_without_a_score_the_least_loss_counts(session: hw.Session):
    def build(lr: float) -> hw.Model:
        return hw.train(
            ROWS, target="y", objective=hw.objectives.LogisticRegression(), optimizer=hw.optim.sgd(lr), epochs=2,
            validation=VALID,
        )  # fmt: skip

    found = hw.search(build, {"lr": [1e-4, 0.5]}, session=session)
    rows = found.trials.to_pylist()
    assert found.best_params == {"lr": 0.5}
    assert [row["score"] for row in rows] == [row["loss"] for row in rows]
    history = found.best.history()["validation_loss"].to_pylist()
    assert found.score == [value for value in history if not math.isnan(value)][-1]


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_a_trial_that_diverges_is_named_and_comes_last(session: hw.Session):
    found = hw.search(logistic, {"l2": [1e38, 0.0]}, **MEASURE, session=session)
    worst, best = found.trials.to_pylist()
    assert worst["score"] is None
    assert "diverged" in worst["error"]
    assert best["error"] is None
    assert found.best_params == {"l2": 0.0}


def far_off(lr: float, on_nan: str) -> hw.Model:
    """A model whose parameters overflow in the only step if the learning rate is large enough; its loss doesn't."""
    return hw.train(
        ROWS.with_columns(a=hw.col("a") * 1000 + 5000), target="a", features=["b"], steps=1, batch_size=10_000,
        objective=hw.objectives.LinearRegression(), optimizer=hw.optim.sgd(lr), on_nan=on_nan,
    )  # fmt: skip


def error_of(model: hw.Model) -> hw.Dataset:
    return VALID.predict(model).agg(hw.metrics.rmse("a", "prediction"))


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_parameters_that_overflow_in_the_last_step_are_a_failure(session: hw.Session):
    space = {"lr": [0.1, 3.4e38], "on_nan": ["raise"]}
    found = hw.search(far_off, space, score=error_of, maximize=False, session=session)
    assert [error is None for error in found.trials["error"].to_pylist()] == [True, False]
    assert len(found.reports) == 1


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_a_trial_that_ends_the_run_is_found_and_the_others_are_trained_once(session: hw.Session):
    space = {"lr": [0.1, 0.2, 0.3, 3.4e38, 0.4], "on_nan": ["skip"]}
    found = hw.search(far_off, space, score=error_of, maximize=False, session=session)
    errors = found.trials["error"].to_pylist()
    assert [error is None for error in errors] == [True, True, True, False, True]
    assert "aren't finite" in errors[3]
    states = [report.state for report in found.reports]
    assert states.count("finished") > 1
    assert states.count("failed") == len(states) - states.count("finished") > 1
    trained = [stage for report in found.reports for stage in report.stages if stage.training]
    assert len(trained) == 4
    for lr, score in zip(space["lr"][:3], found.trials["score"].to_pylist()):
        assert score == error_of(far_off(lr, "skip")).compute(session).column(0)[0].as_py()


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_a_score_that_is_no_number_is_a_failure(session: hw.Session):
    def score(model: hw.Model) -> hw.Dataset:
        return VALID.filter(hw.col("y") == 1).predict(model).agg(hw.metrics.auc("y", "probability"))

    with pytest.raises(TrainingError, match="the score is null"):
        hw.search(logistic, {"lr": [0.1]}, score=score, maximize=True, session=session)


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_a_search_in_which_all_diverge_says_so(session: hw.Session):
    with pytest.raises(TrainingError, match=r"all 2 trials failed(.|\n)*trial 1 \(l2=2e\+38\)"):
        hw.search(logistic, {"l2": [1e38, 2e38]}, **MEASURE, session=session)


def test_a_fault_in_the_users_code_ends_the_search(session: hw.Session):
    class Broken(hw.objectives.LinearRegression):
        def value_and_grad(self, params, batch, rng):
            raise KeyError("no such thing")

    def build(l2: float) -> hw.Model:
        return hw.train(ROWS, target="y", objective=Broken(l2=l2), optimizer=hw.optim.sgd(0.1), steps=2)

    with pytest.raises(UserFunctionError, match="no such thing"):
        hw.search(build, {"l2": [0.0, 1.0]}, session=session)


# -- what a bad call is told ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((logistic, {"step": [1]}), "Did you mean 'steps'"),
        ((lambda lr, depth: logistic(lr), {"lr": [1.0]}), "needs 'depth'"),
        ((logistic(), {"lr": [1.0]}), "give a function"),
        ((lambda lr: None, {"lr": [1.0]}), "returned NoneType"),
        ((lambda loss: logistic(), {"loss": [1.0]}), "'loss_value'"),
    ],
)
def test_what_is_wrong_with_a_builder_is_told_before_anything_runs(arguments, told, session: hw.Session):
    with pytest.raises((ParameterError, TypeMismatchError), match=told):
        hw.search(*arguments, **MEASURE, session=session)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"score": scored}, "maximize=True for the higher"),
        ({"maximize": True}, "needs a score"),
        ({"score": "auc", "maximize": True}, "function of a model"),
        ({"score": lambda model: 1.0, "maximize": True}, "returned float"),
        ({"score": lambda model: VALID.predict(model), "maximize": True}, "one column"),
        ({"score": lambda model: VALID.predict(model).select("probability"), "maximize": True}, "each row"),
        ({**MEASURE, "method": hw.RandomSearch}, "Call it"),
        ({**MEASURE, "method": hw.SuccessiveHalving(4, budget="epochs")}, "says the budget"),
        ({**MEASURE, "workers": 0}, "workers"),
    ],
)
def test_what_is_wrong_with_a_search_is_told_before_anything_runs(options, told, session: hw.Session):
    with pytest.raises((ParameterError, TypeMismatchError), match=told):
        hw.search(logistic, {"lr": [0.1]}, **options, session=session)


def test_a_score_of_several_rows_is_refused(session: hw.Session):
    def by_class(model: hw.Model) -> hw.Dataset:
        return VALID.predict(model).group_by("y").agg(s=hw.mean("probability")).select("s")

    with pytest.raises(ParameterError, match="gave 2 rows"):
        hw.search(logistic, {"lr": [0.1]}, score=by_class, maximize=True, session=session)


def test_a_budget_that_is_in_the_space_too_is_refused(session: hw.Session):
    with pytest.raises(ParameterError, match="out of the space"):
        hw.search(logistic, {"steps": [1, 2]}, **MEASURE, method=hw.SuccessiveHalving(4), session=session)


def test_values_of_any_kind_can_be_searched(session: hw.Session):
    def build(optimizer, l2) -> hw.Model:
        return hw.train(
            ROWS, target="y", objective=hw.objectives.LogisticRegression(l2=l2), optimizer=optimizer, steps=2
        )

    space = {"optimizer": [hw.optim.sgd(0.1), hw.optim.adam(0.01)], "l2": [0, 0.5]}
    found = hw.search(build, space, **MEASURE, session=session)
    assert found.trials["optimizer"].to_pylist()[0].startswith("sgd(lr=0.1")
    assert found.trials["l2"].to_pylist() == [0.0, 0.5, 0.0, 0.5]
    assert found.best_params["optimizer"] in space["optimizer"]
