"""L-BFGS, OWL-QN and Newton against scikit-learn, SciPy and closed forms."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet
from sklearn.linear_model import LogisticRegression as SklearnLogistic

from headwater.errors import HeadwaterError, ParameterError
from headwater.ops.objectives.linear import LinearRegression, LogisticRegression, SoftmaxRegression
from headwater.ops.objectives.objective import Objective
from headwater.ops.optim.solvers import lbfgs, newton
from headwater.ops.training.lbfgs import Lbfgs
from headwater.ops.training.line_search import CURVATURE, DECREASE, LineSearch, Point, cubic_minimum
from headwater.ops.training.local_shard import local_shards, make_info, run_locally
from headwater.ops.training.newton import Newton
from headwater.ops.training.program import Settings

ROWS, WIDTH = 3000, 7


def rows(dtype="float64", seed=0, classes=2):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((ROWS, WIDTH)) * np.linspace(0.3, 2, WIDTH)).astype(dtype)
    scores = x @ rng.standard_normal((WIDTH, classes)) + rng.gumbel(size=(ROWS, classes))
    return {"x": x, "y": scores.argmax(axis=1).astype(dtype)}


def fit(objective, optimizer, columns, shards=8, dtype="float64", validation=None):
    info = make_info(columns, validation, shards=shards, dtype=dtype)
    make = {"lbfgs": Lbfgs, "newton": Newton}[optimizer.name]
    program = make(objective, Settings(optimizer=optimizer, dtype=dtype))
    state = run_locally(program, local_shards(columns, info, validation), info)
    return program, state, program.params(state)


@pytest.mark.parametrize(
    "optimizer",
    [
        lbfgs(tolerance=1e-9),
        lbfgs(tolerance=1e-9, line_search="backtracking"),
        lbfgs(tolerance=1e-9, history=1),
        newton(tolerance=1e-10),
    ],
    ids=str,
)
def test_logistic_regression_is_scikit_learns(optimizer):
    columns = rows()
    reference = SklearnLogistic(C=1 / (0.01 * ROWS), tol=1e-12, max_iter=10_000).fit(
        columns["x"], columns["y"]
    )
    program, state, params = fit(LogisticRegression(l2=0.01), optimizer, columns)
    np.testing.assert_allclose(params["weights"], reference.coef_[0], atol=1e-6)
    np.testing.assert_allclose(params["intercept"], reference.intercept_[0], atol=1e-6)
    assert program.metrics(state)["gradient"] <= 1e-9
    assert program.progress(state) == 1.0


@pytest.mark.parametrize("optimizer", [lbfgs(tolerance=1e-8), newton(tolerance=1e-9)], ids=str)
def test_softmax_regression_is_scikit_learns(optimizer):
    columns = rows(classes=4)
    reference = SklearnLogistic(C=1 / (0.05 * ROWS), tol=1e-12, max_iter=10_000).fit(
        columns["x"], columns["y"]
    )
    # the intercepts are determined but for a constant, so the Hessian is singular
    _, _, params = fit(SoftmaxRegression(4, l2=0.05), optimizer, columns)
    np.testing.assert_allclose(params["weights"].T, reference.coef_, atol=1e-5)
    np.testing.assert_allclose(
        params["intercept"] - params["intercept"].mean(),
        reference.intercept_ - reference.intercept_.mean(),
        atol=1e-5,
    )


@pytest.mark.parametrize("optimizer", [lbfgs(tolerance=1e-10), newton(tolerance=1e-10)], ids=str)
def test_ridge_regression_is_the_normal_equations(optimizer):
    columns = rows()
    columns["y"] = columns["x"] @ np.arange(WIDTH) + 3.0
    columns["weight"] = np.random.default_rng(1).integers(0, 4, ROWS).astype(float)
    design = np.column_stack([columns["x"], np.ones(ROWS)])
    weight = columns["weight"]
    penalty = np.diag([0.2] * WIDTH + [0.0])
    solution = np.linalg.solve(
        design.T @ (design * weight[:, None]) / weight.sum() + penalty,
        design.T @ (weight * columns["y"]) / weight.sum(),
    )
    _, state, params = fit(LinearRegression(l2=0.2), optimizer, columns)
    np.testing.assert_allclose([*params["weights"], params["intercept"]], solution, atol=1e-8)
    if optimizer.name == "newton":
        assert state["iteration"] <= 2


def test_owlqn_finds_the_same_zeros_as_coordinate_descent():
    columns = rows()
    columns["y"] = columns["x"] @ np.array([2.0, 0, 0, -1, 0, 0.5, 0]) + 1.0
    columns["y"] += 0.5 * np.random.default_rng(2).standard_normal(ROWS)
    reference = ElasticNet(alpha=0.11, l1_ratio=0.1 / 0.11, tol=1e-12, max_iter=100_000)
    reference.fit(columns["x"], columns["y"])
    _, _, params = fit(LinearRegression(l1=0.1, l2=0.01), lbfgs(tolerance=1e-9), columns)
    np.testing.assert_allclose(params["weights"], reference.coef_, atol=1e-7)
    np.testing.assert_allclose(params["intercept"], reference.intercept_, atol=1e-7)
    assert np.array_equal(params["weights"] == 0, reference.coef_ == 0)
    assert 0 < np.count_nonzero(params["weights"] == 0) < WIDTH


def test_float32_ends_where_rounding_lets_it():
    columns = rows("float32")
    _, state, params = fit(LogisticRegression(l2=0.01), lbfgs(tolerance=1e-14), columns, dtype="float32")
    exact = fit(LogisticRegression(l2=0.01), newton(), rows())[2]
    assert params["weights"].dtype == np.float32
    np.testing.assert_allclose(params["weights"], exact["weights"], atol=1e-4)
    assert state["stalled"]
    assert state["iteration"] < 100


class Rosenbrock(Objective):
    """The banana valley; its rows don't matter."""

    needs_target = False

    def init(self, rng, info):
        return {"point": np.array([-1.2, 1.0], info.dtype)}

    def value_and_grad(self, params, batch, rng):
        a, b = params["point"]
        slope = np.array([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])
        return (1 - a) ** 2 + 100 * (b - a * a) ** 2, {"point": slope}, {}

    def hessian(self, params, batch):
        a, b = params["point"]
        return np.array([[2 - 400 * (b - 3 * a * a), -400 * a], [-400 * a, 200.0]])


@pytest.mark.parametrize(
    "optimizer",
    [
        lbfgs(500, tolerance=1e-9),
        lbfgs(500, tolerance=1e-9, line_search="backtracking"),
        newton(tolerance=1e-9),
    ],
    ids=str,
)
def test_a_curved_valley_is_followed_to_its_end(optimizer):
    columns = {"x": np.zeros((16, 1))}
    _, state, params = fit(Rosenbrock(), optimizer, columns)
    np.testing.assert_allclose(params["point"], [1.0, 1.0], atol=1e-6)
    losses = [figures["loss"] for figures in state["history"]]
    assert losses == sorted(losses, reverse=True)
    assert state["step"] < 150


class Explosive(Rosenbrock):
    """exp(-x) - x overflows to the left, and is not finite right of 3; least at the wall."""

    def init(self, rng, info):
        return {"point": np.array([-5.0])}

    def value_and_grad(self, params, batch, rng):
        (a,) = params["point"]
        if a > 3:
            return np.nan, {"point": np.array([np.nan])}, {}
        return np.exp(-a) + 0.5 * (a - 2.9) ** 2, {"point": np.array([a - 2.9 - np.exp(-a)])}, {}


def test_a_step_into_nan_is_shortened():
    _, _, params = fit(Explosive(), lbfgs(200, tolerance=1e-9), {"x": np.zeros((16, 1))})
    (a,) = params["point"]
    assert abs(a - 2.9 - np.exp(-a)) < 1e-8


@pytest.mark.parametrize(
    ("optimizer", "l1"), [(lbfgs(), 0.0), (lbfgs(), 0.02), (newton(damping=1e-6), 0.0)], ids=str
)
def test_the_bits_are_those_of_a_state_that_travelled(optimizer, l1):
    columns = rows("float32")
    info = make_info(columns, shards=5)
    shards = local_shards(columns, info)
    make = {"lbfgs": Lbfgs, "newton": Newton}[optimizer.name]

    def program():
        return make(LogisticRegression(l1=l1, l2=0.01), Settings(optimizer=optimizer))

    whole = run_locally(program(), shards, info)
    state = program().start(info)
    while not program().finished(state):
        state = pickle.loads(pickle.dumps(state, 5))  # another worker takes over after each step
        parts = [program().statistics(state, shard) for shard in reversed(shards)][::-1]
        sums = {name: _tree_sum([part[name] for part in parts]) for name in parts[0]}
        state = program().update(state, sums)
    assert state["step"] == whole["step"]
    assert state["history"] == whole["history"]
    assert whole["vector"].tobytes() == state["vector"].tobytes()


def _tree_sum(parts):
    while len(parts) > 1:
        parts = [sum(parts[i + 1 : i + 2], start=parts[i]) for i in range(0, len(parts), 2)]
    return parts[0]


@pytest.mark.parametrize("optimizer", [lbfgs(tolerance=1e-9), newton()], ids=str)
def test_empty_shards_and_rows_without_weight_change_nothing(optimizer):
    columns = {name: column[:5] for name, column in rows().items()}
    few = fit(LogisticRegression(l2=0.1), optimizer, columns, shards=8)[2]
    one = fit(LogisticRegression(l2=0.1), optimizer, columns, shards=1)[2]
    np.testing.assert_allclose(few["weights"], one["weights"], atol=1e-7)
    more = {name: np.concatenate([column, column[:3] * 9]) for name, column in columns.items()}
    more["y"][5:] = 1 - columns["y"][:3]
    more["weight"] = np.array([1.0] * 5 + [0.0] * 3)
    weighted = fit(LogisticRegression(l2=0.1), optimizer, more, shards=4)[2]
    np.testing.assert_allclose(weighted["weights"], one["weights"], atol=1e-7)


def test_features_that_depend_on_each_other_get_damping():
    columns = rows()
    columns["x"] = np.column_stack([columns["x"], columns["x"][:, 0], np.zeros(ROWS)])
    program, state, params = fit(LogisticRegression(), newton(), columns)
    assert np.isfinite(params["weights"]).all()
    assert program.metrics(state)["gradient"] < 1e-6


def test_validation_rows_are_reported():
    columns, held_out = rows(), rows(seed=5)
    program, state, params = fit(LogisticRegression(), lbfgs(tolerance=1e-8), columns, validation=held_out)
    expected = LogisticRegression().loss(params, held_out)[0]
    assert program.metrics(state)["validation_loss"] == pytest.approx(expected, rel=1e-12)
    first = state["history"][0]["validation_loss"]
    assert first == pytest.approx(np.log(2))


def test_what_a_solver_cannot_do_is_said_early():
    class Normed(LogisticRegression):
        buffers = ("mean",)

    class Plain(Objective):
        pass

    with pytest.raises(ParameterError, match="takes no l1 penalty"):
        Newton(LogisticRegression(l1=0.1), Settings(optimizer=newton()))
    with pytest.raises(ParameterError, match=r"hw\.optim\.lbfgs"):
        Newton(Plain(), Settings(optimizer=newton()))
    with pytest.raises(ParameterError, match=r"buffers \(mean\)"):
        Lbfgs(Normed(), Settings(optimizer=lbfgs()))
    for solver, make in ((lbfgs(), Lbfgs), (newton(), Newton)):
        with pytest.raises(ParameterError, match="epochs=3"):
            make(LogisticRegression(), Settings(optimizer=solver, epochs=3))
    info = make_info({"x": np.zeros((10, 6000)), "y": np.zeros(10)})
    with pytest.raises(ParameterError, match="6001 parameters"):
        Newton(LogisticRegression(), Settings(optimizer=newton())).start(info)


def test_a_nan_among_the_features_is_named():
    columns = rows()
    columns["x"][17, 3] = np.nan
    with pytest.raises(HeadwaterError, match="NaN or an infinity among the features"):
        fit(LogisticRegression(), lbfgs(), columns)


def test_line_searches_end_at_strong_wolfe_points():
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b, c, first = rng.random(4) * [3, 5, 3, 1] + [0.1, 0.0, 0.2, 0.001]

        def line(t, a=a, b=b, c=c):
            value = a * t * t / 2 - c * t + b * np.sin(2 * t) / 8
            return value, a * t - c + b * np.cos(2 * t) / 4

        loss, slope = line(0.0)
        if slope >= 0:
            continue
        search = LineSearch(Point(0.0, loss, slope), first * 10.0 ** rng.integers(-3, 4))
        while search.verdict == "try":
            search = search.told(*line(search.length))
        assert search.verdict == "accept"
        reached = search.low
        assert reached.loss <= loss + DECREASE * reached.length * slope
        assert abs(reached.slope) <= -CURVATURE * slope


def test_the_cubic_through_two_points_has_its_minimum_where_the_derivative_says():
    a, b = (Point(t, t**3 - 3 * t, 3 * t * t - 3) for t in (0.25, 3.0))
    assert cubic_minimum(a, b) == pytest.approx(1.0)
    assert cubic_minimum(b, a) == pytest.approx(1.0)
