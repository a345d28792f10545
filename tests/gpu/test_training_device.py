"""Every objective and solver trains on a device as on a CPU, and twice the same bits."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops import optim
from headwater.ops.backend import use_backend
from headwater.ops.objectives import (
    ALS,
    MLP,
    PCA,
    FactorizationMachine,
    GaussianMixture,
    KMeans,
    LinearRegression,
    LogisticRegression,
    SoftmaxRegression,
    Torch,
)
from headwater.ops.objectives.objective import Objective
from headwater.ops.training.features import Features
from headwater.ops.training.local_shard import local_shards, make_info, run_locally
from headwater.ops.training.model_table import encode_model
from headwater.ops.training.norm_blocks import block_squares
from headwater.ops.training.predict import Predict
from headwater.ops.training.program import EarlyStopping, Settings

ROWS, WIDTH = 2500, 5


def columns(task="regression", weighted=False, dtype=np.float64):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, WIDTH)) + rng.integers(0, 3, (ROWS, 1)) * 3
    scores = x @ rng.normal(size=(WIDTH, 3)) + rng.gumbel(size=(ROWS, 3))
    y = {
        "regression": scores[:, 0],
        "binary": (scores[:, 0] > scores[:, 1]).astype(np.float64),
        "classes": scores.argmax(axis=1).astype(np.float64),
    }[task]
    found = {"x": x.astype(dtype), "y": y.astype(dtype)}
    return {**found, "weight": (rng.integers(0, 3, ROWS) + 0.5).astype(dtype)} if weighted else found


def ratings():
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 40, ROWS), rng.integers(0, 30, ROWS)
    y = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 30))
    return {"user": users, "item": items, "y": y[users, items]}


class Noisy(Objective):
    """A user's objective that draws numbers."""

    def init(self, rng, info):
        return {"w": rng.normal(size=info.width)}

    def value_and_grad(self, params, batch, rng):
        from headwater.ops.backend import array_namespace

        noise = array_namespace().asarray(rng.normal(size=len(batch["y"])) * 0.1)
        error = batch["x"] @ params["w"] - batch["y"] + noise
        return (error**2).mean() / 2, {"w": batch["x"].T @ error / len(error)}, {}


def trained(backend, objective, data, validation=None, seed=0, **settings):
    """The parameters, figures, and predictions of the first rows, all on the host."""
    with use_backend(backend) as xp:
        dtype = str(data["y"].dtype) if "y" in data else "float64"
        given = Settings(seed=seed, dtype=dtype, batch_size=256, **settings)
        info = make_info(data, validation, shards=3, batch_size=256, seed=seed, dtype=dtype)
        program = objective.program(given)
        state = run_locally(program, local_shards(data, info, validation), info)
        params = program.params(state)
        found = {"metrics": program.metrics(state), "params": params}
        if not isinstance(objective, Noisy):
            names = [name for name in data if name not in ("y", "weight")]
            there = _moved(params, xp)
            found["predicted"] = objective.predict(
                there, {name: xp.asarray(data[name][:50]) for name in names}
            )
        return _flat(found)


def _moved(value, xp):
    if isinstance(value, dict):
        return {name: _moved(item, xp) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(item, xp) for item in value]
    return xp.asarray(value)


def _flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{name}.{i}").items()}
    return {name: value.get() if hasattr(value, "get") else np.asarray(value)}


FEW = {"steps": 7}
CASES = [
    (LinearRegression(l2=0.01, l1=0.001), columns(), FEW),
    (LinearRegression(), columns(weighted=True), {"optimizer": optim.newton()}),
    (LogisticRegression(l2=0.01), columns("binary"), {**FEW, "optimizer": optim.adamw(0.05)}),
    (LogisticRegression(fit_intercept=False), columns("binary", True), {"optimizer": optim.lbfgs(15)}),
    (LogisticRegression(l1=0.01), columns("binary"), {"optimizer": optim.lbfgs(15)}),
    (LogisticRegression(l2=0.1), columns("binary"), {"optimizer": optim.newton()}),
    (SoftmaxRegression(3, l2=0.01), columns("classes", True), {**FEW, "optimizer": optim.lion(0.01)}),
    (SoftmaxRegression(3, l2=0.1, fit_intercept=False), columns("classes"), {"optimizer": optim.newton(6)}),
    (SoftmaxRegression(3, l2=0.1), columns("classes"), {"optimizer": optim.lbfgs(8)}),
    (FactorizationMachine(3, l2=0.01), columns(), {**FEW, "accumulate": 3}),
    (FactorizationMachine(2, "binary"), columns("binary", True), {**FEW, "optimizer": optim.adagrad(0.1)}),
    (MLP((8, 6), dropout=0.3, l2=0.01), columns(), {**FEW, "optimizer": optim.lamb(0.01)}),
    (MLP((8,), "classes", 3, activation="gelu"), columns("classes", True), {"optimizer": optim.lbfgs(5)}),
    (MLP((8,), "binary", activation="tanh", dropout=0.2), columns("binary"), {"optimizer": optim.lbfgs(4)}),
    (Noisy(), columns(), {**FEW, "optimizer": optim.nesterov(0.01)}),
    (Noisy(), columns(), {"optimizer": optim.lbfgs(4)}),
    (KMeans(4), columns(), {}),
    (KMeans(3, "random"), columns(weighted=True), {}),
    (KMeans(3, columns()["x"][:3]), columns(), {}),
    (GaussianMixture(3), columns(), {}),
    (GaussianMixture(2, covariance="diag"), columns(weighted=True), {}),
    (PCA(3, whiten=True), columns(weighted=True), {}),
    (ALS("user", "item", rank=3, iterations=3), ratings(), {}),
    (ALS("user", "item", rank=3, iterations=2, implicit=True), ratings(), {}),
]


@pytest.mark.parametrize(("objective", "data", "settings"), CASES, ids=[repr(case[0])[:50] for case in CASES])
def test_a_device_trains_as_a_cpu_does(objective, data, settings, xp):
    expected = trained("numpy", objective, data, **settings)
    result = trained("cupy", objective, data, **settings)
    again = trained("cupy", objective, data, **settings)
    assert list(expected) == list(result)
    for name, array in expected.items():
        assert result[name].tobytes() == again[name].tobytes(), name
        np.testing.assert_allclose(result[name], array, rtol=1e-9, atol=1e-9, err_msg=name)


def test_validation_and_early_stopping(xp):
    data = columns("binary")
    held = {name: array[:700] for name, array in data.items()}
    settings = {"epochs": 4, "early_stopping": EarlyStopping(patience=2), "optimizer": optim.adam(0.05)}
    found = [trained(backend, MLP((6,), "binary"), data, held, **settings) for backend in ("numpy", "cupy")]
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-9, atol=1e-9, err_msg=name)


def build():
    from torch import nn

    return nn.Sequential(nn.Linear(WIDTH, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))


def test_pytorch_modules_take_and_give_arrays_of_the_device(xp):
    pytest.importorskip("torch")
    data = columns("binary", weighted=True, dtype=np.float32)
    case = (Torch(build, output="binary"), data)
    found = [trained(backend, *case, **FEW) for backend in ("numpy", "cupy", "cupy")]
    for name, array in found[0].items():
        assert found[1][name].tobytes() == found[2][name].tobytes(), name
        np.testing.assert_allclose(found[1][name], array, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "objective",
    [KMeans(3), LogisticRegression(), GaussianMixture(2), PCA(2)],
    ids=["kmeans", "logistic", "gmm", "pca"],
)
def test_predictions_are_the_same_rows_whatever_the_cuts(objective, xp):
    data = columns("binary")
    table = pa.table({f"x{i}": data["x"][:, i] for i in range(WIDTH)})
    with use_backend("numpy"):
        info = make_info(data, shards=2, batch_size=256, dtype="float64")
        program = objective.program(Settings(dtype="float64", **(FEW if objective.needs_target else {})))
        state = run_locally(program, local_shards(data, info), info)
        model = encode_model(program.params(state))
    step = Predict(objective, Features(target=None, dtype="float64"))
    results = []
    for backend, cuts in (("numpy", 1), ("cupy", 1), ("cupy", 3)):
        with use_backend(backend):
            prepared = step.prepare(model)
            size = -(-len(table) // cuts)
            parts = [step.apply(table.slice(i * size, size), prepared) for i in range(cuts)]
            results.append(
                pa.concat_tables(parts)
                .combine_chunks()
                .select(step.output_schema(table.schema).names[WIDTH:])
            )
    assert results[1].equals(results[2])
    for one, other in zip(results[0].columns, results[1].columns):
        flat = [
            c.combine_chunks().flatten() if pa.types.is_fixed_size_list(c.type) else c for c in (one, other)
        ]
        np.testing.assert_allclose(*(np.asarray(c) for c in flat), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 4096, 20_000])
def test_norms_of_slices_are_those_of_the_whole(size, xp):
    grad = np.random.default_rng(size).normal(size=size).astype(np.float32)
    whole = block_squares(xp.asarray(grad))
    parts = [block_squares(xp.asarray(grad[start : start + 8192])) for start in range(0, size, 8192)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    with use_backend("numpy"):
        np.testing.assert_allclose(whole, block_squares(grad), rtol=1e-5)
