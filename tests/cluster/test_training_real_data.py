"""Training on real files, on a cluster, reaches what scikit-learn and plain PyTorch reach on the same rows."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headwater as hw
from headwater import col
from headwater.ops import objectives, optim
from headwater.ops.training.minibatch import FOR_INIT
from headwater.ops.training.program import DataInfo
from headwater.ops.training.sampling import Order, shard_bounds, shard_shares

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HEADWATER_DATA", ROOT.parent / "shared" / "data"))

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(not DATA.exists(), reason="the real files aren't here")]

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def session() -> Iterator[hw.Session]:
    with hw.Session(workers=2, progress=False, journal=False) as session:
        yield session


# -- incomes ------------------------------------------------------------------------------------------------------

NUMBERS = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
WORDS = ("workclass", "marital_status", "occupation", "relationship", "race", "sex", "native_country")
L2 = 1e-4


@pytest.fixture(scope="module")
def adult() -> dict[str, Any]:
    """Incomes, prepared by what the training rows tell: train and test rows, and the preparation."""
    people = hw.read_csv(f"{DATA}/adult.csv", null_values=["?"], partition_bytes=500_000)
    people = people.rename({name: name.replace("-", "_") for name in people.columns})
    people = people.select(*NUMBERS, *WORDS, "fnlwgt", rich=col("income_per_year") == ">50K")
    train, test = people.split(0.8, 0.2, by=["fnlwgt", "age", "occupation"], seed=1)
    steps = hw.prep.Impute(*WORDS, strategy="most_frequent") | hw.prep.Standardize(*NUMBERS)
    prep = (steps | hw.prep.OneHot(*WORDS, unseen="ignore")).fit(train.drop("fnlwgt"))
    return {"train": prep.transform(train), "test": prep.transform(test), "prep": prep}


def features_of(dataset: hw.Dataset) -> list[str]:
    return [name for name in dataset.columns if name not in ("rich", "fnlwgt")]


@pytest.fixture(scope="module")
def arrays(adult, session) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The prepared rows, for scikit-learn."""
    outputs = {part: adult[part] for part in ("train", "test")}
    found = {}
    with session.run(outputs) as result:
        for part in outputs:
            table = result.table(part)
            columns = []
            for name in features_of(outputs[part]):
                values = table[name].combine_chunks()
                columns.append(
                    np.stack(values.to_numpy(zero_copy_only=False))
                    if pa.types.is_nested(values.type)
                    else values
                )
            found[part] = np.column_stack(columns).astype(np.float64), table["rich"].to_numpy().astype(int)
    return found


@pytest.fixture(scope="module")
def reference(arrays):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = arrays["train"]
    exact = linear_model.LogisticRegression(C=1 / (L2 * len(x)), tol=1e-8, solver="newton-cholesky")
    return exact.fit(x, y)


def penalized_loss(weights: np.ndarray, intercept: float, x: np.ndarray, y: np.ndarray) -> float:
    z = x @ weights + intercept
    return float(np.mean(np.logaddexp(0, z) - y * z) + 0.5 * L2 * weights @ weights)


@pytest.mark.parametrize(
    ("optimizer", "epochs", "loss_margin", "auc_margin"),
    [
        (optim.lbfgs(max_iterations=500, tolerance=1e-6), None, 1e-4, 1e-3),
        (optim.adam(optim.cosine(0.1, 260)), 10, 2e-3, 2e-3),
    ],
    ids=["lbfgs", "adam"],
)
def test_incomes_are_told_as_well_as_by_scikit_learn(
    session, adult, arrays, reference, optimizer, epochs, loss_margin, auc_margin
):
    metrics = pytest.importorskip("sklearn.metrics")
    model = hw.train(
        adult["train"],
        objective=objectives.LogisticRegression(l2=L2),
        target="rich",
        features=features_of(adult["train"]),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=256,
        prep=adult["prep"],
    )
    scored = adult["test"].predict(model)
    outputs = {"auc": scored.agg(auc=hw.metrics.auc("rich", "probability")), "scored": scored, "model": model}
    with session.run(outputs) as result:
        auc = result.table("auc")["auc"][0].as_py()
        probability = result.table("scored")["probability"].to_numpy()
    params = model.params(session)
    x, y = arrays["train"]
    best = penalized_loss(reference.coef_[0], reference.intercept_[0], x, y)
    reached = penalized_loss(params["weights"].astype(float), float(params["intercept"]), x, y)
    assert best - 1e-5 < reached < best + loss_margin
    x, y = arrays["test"]
    assert auc == pytest.approx(metrics.roc_auc_score(y, probability), abs=1e-6)
    assert auc == pytest.approx(metrics.roc_auc_score(y, reference.predict_proba(x)[:, 1]), abs=auc_margin)
    assert auc > 0.89


# -- digits -------------------------------------------------------------------------------------------------------

BATCH, EPOCHS, SEED = 250, 2, 7


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> dict[str, Any]:
    """Images of digits, as arrays and as files: 8,000 to learn from and 2,000 to be read."""
    if not (DATA / "mnist10k").exists():
        pytest.skip("the images aren't here")
    with gzip.open(DATA / "mnist10k" / "images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255
    with gzip.open(DATA / "mnist10k" / "labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    folder = tmp_path_factory.mktemp("digits")
    found: dict[str, Any] = {}
    for part, rows in (("train", slice(0, 8000)), ("test", slice(8000, None))):
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(x[rows].reshape(-1)), 784)
        path = folder / f"{part}.parquet"
        pq.write_table(pa.table({"pixels": pixels, "digit": y[rows]}), path, row_group_size=2000)
        found[part] = x[rows], y[rows], hw.read_parquet(str(path), partition_bytes=4 << 20)
    return found


def perceptron():
    from torch import nn

    return nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutions():
    from torch import nn

    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 6, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 12, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 5 * 5, 10),
    )


def by_torch(objective: Any, build: Callable[[], Any], new_optimizer: Callable, x: np.ndarray, y: np.ndarray):
    """Train a module by plain PyTorch, with Headwater's first parameters and batches; no gang, shards or programs.

    Returns:
        The module, and the loss of each step.
    """
    import torch

    columns = {"x": ((784,), "float32"), "y": ((), "float32")}
    info = DataInfo(rows=len(x), batch_size=BATCH, columns=columns, seed=SEED)
    first = objective.init(info.rng(FOR_INIT), info)
    module = build()
    with torch.no_grad():
        if "layers" in first:
            arrays = [a for layer in first["layers"] for a in (layer["weights"].T, layer["bias"])]
        else:
            arrays = [first[name] for name, _ in module.named_parameters()]
        for parameter, array in zip(module.parameters(), arrays):
            parameter.copy_(torch.from_numpy(np.array(array)))
    optimizer = new_optimizer(module.parameters())
    bounds, shares = shard_bounds(len(x), info.shards, BATCH), shard_shares(info.shards, BATCH)
    orders = [Order(SEED, i, bounds[i + 1] - bounds[i], shares[i]) for i in range(info.shards)]
    losses = []
    for epoch in range(EPOCHS):
        for step in range(info.steps_per_epoch):
            rows = np.concatenate([bounds[i] + order.batch(epoch, step) for i, order in enumerate(orders)])
            optimizer.zero_grad()
            output = module(torch.from_numpy(x[rows]))
            loss = torch.nn.functional.cross_entropy(output, torch.from_numpy(y[rows]))
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return module, losses


@pytest.mark.parametrize("kind", ["mlp", "torch mlp", "cnn"])
def test_digits_are_read_as_well_as_by_plain_pytorch(session, digits, kind):
    torch = pytest.importorskip("torch")
    build = convolutions if kind == "cnn" else perceptron
    if kind == "cnn":
        optimizer, other = optim.adam(2e-3), partial(torch.optim.Adam, lr=2e-3)
    else:
        optimizer, other = optim.momentum(0.05, 0.9), partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    objective = (
        objectives.MLP((32,), task="classes", classes=10)
        if kind == "mlp"
        else objectives.Torch(build, output="classes", classes=10)
    )
    x, y, rows = digits["train"]
    model = hw.train(
        rows,
        objective=objective,
        target="digit",
        optimizer=optimizer,
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=SEED,
    ).compute(session)
    module, losses = by_torch(objective, build, other, x, y)
    assert model.history().column("loss").to_pylist() == pytest.approx(losses, abs=1e-5)
    x, y, rows = digits["test"]
    predicted = rows.predict(model)
    share = hw.metrics.accuracy("digit", "prediction")
    reached = predicted.agg(share=share).compute(session)["share"][0].as_py()
    with torch.no_grad():
        expected = float((module(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
    assert reached == pytest.approx(expected, abs=0.001)
    assert reached > 0.85
