"""Training on real processes: the same bits for any number of workers, each row once an epoch, and what goes wrong on a
member told where the user sees it."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import headwater as hw
from headwater import errors
from headwater.chaos.cluster import ChaosCluster
from headwater.ops import objectives, optim
from headwater.ops.training.model_table import decode_model, digest

pytestmark = pytest.mark.cluster

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

#: neither a multiple of the shards nor of the batches
ROWS, WIDTH = 1003, 6


@pytest.fixture(scope="module")
def session() -> Iterator[hw.Session]:
    """Eight workers of one thread."""
    with hw.Session(workers=8, threads_per_worker=1, progress=False, journal=False) as session:
        yield session


@pytest.fixture(scope="module")
def small() -> Iterator[hw.Session]:
    """Two workers of two threads."""
    with hw.Session(workers=2, threads_per_worker=2, progress=False, journal=False) as session:
        yield session


@pytest.fixture(scope="module")
def inline() -> Iterator[hw.Session]:
    with hw.Session("inline", journal=False) as session:
        yield session


def rows(count: int = ROWS, seed: int = 0, partitions: int = 3) -> hw.Dataset:
    """Features, a class and a number that depend on them, and the row's number."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, WIDTH))
    z = x @ np.random.default_rng(99).normal(size=WIDTH)
    columns = {f"x{i}": x[:, i] for i in range(WIDTH)}
    y = (z + rng.normal(size=count) > 0).astype(np.int64)
    return hw.from_arrow({"id": np.arange(count), **columns, "y": y, "z": z}, partitions=partitions)


FEATURES = [f"x{i}" for i in range(WIDTH)]


def by_torch():
    from torch import nn

    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def trained(kind: str, workers: int | None = None) -> hw.Model:
    """Declare a training, by a gang of so many workers."""
    options: dict = {
        "features": FEATURES,
        "target": "y",
        "batch_size": 200,
        "seed": 3,
        "strategy": hw.AllReduce(workers=workers),
    }
    if kind == "logistic":
        options |= {"objective": objectives.LogisticRegression(l2=1e-3), "epochs": 2}
        options |= {"optimizer": optim.adam(1e-2)}
    elif kind == "mlp":
        options |= {
            "objective": objectives.MLP((16, 8), task="binary", dropout=0.3),
            "optimizer": optim.momentum(optim.cosine(0.3, 60)),
            "epochs": 10,
            "validation": rows(211, seed=1),
            "early_stopping": hw.EarlyStopping(patience=1, min_delta=0.03),
        }
    elif kind == "torch":
        options |= {"objective": objectives.Torch(by_torch, output="binary"), "epochs": 2}
    elif kind == "k-means":
        options |= {"objective": objectives.KMeans(5), "target": None}
    elif kind == "l-bfgs":
        options |= {"objective": objectives.LogisticRegression(l2=1e-3), "optimizer": optim.lbfgs()}
    return hw.train(rows(), **options)


#: what is trained, and by how many workers; a worker's first step with PyTorch takes it seconds
KINDS = {
    "logistic": (1, 2, 3, 4, 8),
    "mlp": (1, 3, 8),
    "torch": (3,),
    "k-means": (1, 3, 8),
    "l-bfgs": (1, 3, 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_the_same_for_any_number_of_workers(session, small, inline, kind):
    if kind == "torch":
        pytest.importorskip("torch")
    expected = trained(kind).compute(inline)
    for workers in KINDS[kind]:
        assert_trained_by(session, kind, workers, expected.digest())
    assert trained(kind).digest(small) == expected.digest()
    if kind == "mlp":
        assert expected.about()["end"] == "early stopping"


def assert_trained_by(session: hw.Session, kind: str, workers: int, expected: str) -> None:
    """Check the bits of a model that a gang of so many workers has trained, from the first step to the last.

    On a machine that is very busy, a worker may answer too late and be left out. The bits must be the same then too,
    but it is done again.
    """
    for _ in range(5):
        with session.run({"model": trained(kind, workers)}) as result:
            (log,) = [stage.training for stage in result.report.stages if stage.training]
            assert digest(decode_model(result.table("model"))) == expected
        if (log["members"], log["generations"]) == (workers, 1):
            return
    pytest.fail(f"no gang of {workers} stayed together: {log}")


def test_other_rows_seeds_and_shards_give_other_bits(inline):
    """The digest does tell models apart."""
    plain = {"objective": objectives.LogisticRegression(), "target": "y", "features": FEATURES}
    plain |= {"steps": 3, "batch_size": 200}  # a batch of all rows takes them in order, whatever the seed
    digests = {
        hw.train(rows(), **plain).digest(inline),
        hw.train(rows(), **plain, seed=1).digest(inline),
        hw.train(rows(), **plain, strategy=hw.AllReduce(shards=4)).digest(inline),
        hw.train(rows().limit(ROWS - 1), **plain).digest(inline),
    }
    assert len(digests) == 4


# -- exactly once -------------------------------------------------------------------------------------------------


def count_rows(params, batch):
    """A "gradient" that adds up, for each row's number, how often it was in a batch."""
    counts = np.bincount(batch["id"], minlength=len(params["seen"])).astype(np.float64)
    return 0.0, {"seen": -counts / len(batch["id"])}


def start_at_zero(rng, info):
    return {"seen": np.zeros(info.rows)}


def seen(session: hw.Session, count: int, batch_size: int, epochs: int, workers: int) -> np.ndarray:
    """For each row, the sum over its batches of one by the batch's rows."""
    model = hw.train(
        hw.range(count, partitions=3),
        objective=objectives.custom(start_at_zero, count_rows, columns=("id",), needs_target=False),
        optimizer=optim.sgd(1.0),
        epochs=epochs,
        batch_size=batch_size,
        dtype="float64",
        strategy=hw.AllReduce(workers=workers),
    )
    return model.params(session)["seen"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("count", "batch_size"), [(1003, 100), (13, 100), (37, 5)])
def test_each_epoch_has_each_row_once(session, workers, count, batch_size):
    whole, rest = divmod(count, batch_size)
    expected = Counter({round(1 / batch_size, 9): whole * batch_size})
    if rest:
        expected += Counter({round(1 / rest, 9): rest})
    before, lasts = np.zeros(count), set()
    for epochs in (1, 2):
        total = seen(session, count, batch_size, epochs, workers)
        epoch, before = total - before, total
        assert Counter(np.round(epoch, 9).tolist()) == expected
        lasts.add(tuple(np.flatnonzero(epoch > 1.5 / batch_size).tolist()))
    if rest and whole:
        assert len(lasts) == 2  # the second epoch is in another order


def test_solvers_take_each_row_once(session):
    """Least squares on the rows' numbers as one-hot vectors: the mean of each is its own target."""
    model = hw.train(
        hw.range(1003, partitions=3),
        objective=objectives.custom(start_at_zero, pull, columns=("id",), needs_target=False),
        optimizer=optim.lbfgs(),
        dtype="float64",
        strategy=hw.AllReduce(workers=3),
    )
    assert model.params(session)["seen"] == pytest.approx(np.arange(1003.0), abs=1e-3)
    (first, *_) = model.history(session).column("loss").to_pylist()
    assert first <= 0.5 * float((np.arange(1003.0) ** 2).mean())


def pull(params, batch):
    error = params["seen"][batch["id"]] - batch["id"]
    grad = np.zeros_like(params["seen"])
    np.add.at(grad, batch["id"], error / len(error))
    return 0.5 * float((error**2).mean()), {"seen": grad}


# -- oracles ------------------------------------------------------------------------------------------------------


def table(dataset: hw.Dataset, *columns: str) -> np.ndarray:
    with hw.Session("inline", journal=False) as session:
        rows = dataset.select(*columns).compute(session)
    return np.stack([rows[name].to_numpy() for name in columns], axis=1)


def test_k_means_is_scikit_learns_from_the_same_centers(small):
    cluster = pytest.importorskip("sklearn.cluster")
    x = table(rows(), *FEATURES)
    centers = x[:5]
    exact = {"max_iter": 300, "tol": 0, "n_init": 1, "algorithm": "lloyd"}
    reference = cluster.KMeans(5, init=centers, **exact).fit(x)
    objective = objectives.KMeans(5, centers, tolerance=0)
    model = hw.train(rows(), objective=objective, features=FEATURES, dtype="float64").compute(small)
    assert model.params()["centers"] == pytest.approx(reference.cluster_centers_, abs=1e-9)
    predicted = rows().predict(model).compute(small)
    assert predicted["cluster"].to_pylist() == reference.labels_.tolist()
    assert np.square(predicted["distance"]).sum() == pytest.approx(reference.inertia_)


def test_pca_is_scikit_learns(small):
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = table(rows(), *FEATURES) * np.arange(1, WIDTH + 1)
    scaled = hw.from_arrow({name: x[:, i] for i, name in enumerate(FEATURES)}, partitions=3)
    reference = decomposition.PCA(3).fit(x)
    model = hw.train(scaled, objective=objectives.PCA(3), dtype="float64").compute(small)
    params = model.params()
    for name, expected in (
        ("mean", reference.mean_),
        ("explained_variance", reference.explained_variance_),
    ):
        assert params[name] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    products = np.abs(np.einsum("ij,ij->i", params["components"], reference.components_))
    assert products == pytest.approx(np.ones(3), abs=1e-9)


def test_a_gaussian_mixture_is_scikit_learns_from_the_same_start(small):
    mixture = pytest.importorskip("sklearn.mixture")
    x = table(rows(), *FEATURES[:3])
    x[::2] += 3
    blobs = hw.from_arrow({name: x[:, i] for i, name in enumerate(FEATURES[:3])}, partitions=3)
    init = {
        "weights": np.full(2, 0.5),
        "means": np.array([[0.0] * 3, [3.0] * 3]),
        "covariances": np.ones((2, 3)),
    }
    reference = mixture.GaussianMixture(
        2,
        covariance_type="diag",
        tol=1e-8,
        max_iter=200,
        weights_init=init["weights"],
        means_init=init["means"],
        precisions_init=1 / init["covariances"],
    ).fit(x)
    objective = objectives.GaussianMixture(
        2, covariance="diag", init=init, tolerance=1e-8, max_iterations=200
    )
    params = hw.train(blobs, objective=objective, dtype="float64").params(small)
    assert params["weights"] == pytest.approx(reference.weights_, abs=1e-4)
    assert params["means"] == pytest.approx(reference.means_, abs=1e-3)
    assert params["covariances"] == pytest.approx(reference.covariances_, abs=1e-3)


def test_als_finds_ratings_of_low_rank(small):
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    given = rng.random((40, 30)) < 0.5
    user, item = np.nonzero(given)
    ratings = hw.from_arrow(
        {"user": user, "item": item, "rating": (users @ items.T)[user, item]}, partitions=3
    )
    objective = objectives.ALS("user", "item", rank=2, reg=1e-6, iterations=60)
    model = hw.train(ratings, objective=objective, target="rating").compute(small)
    user, item = np.nonzero(~given)
    others = hw.from_arrow({"user": user, "item": item}).predict(model).compute(small)
    assert others["prediction"].to_numpy() == pytest.approx((users @ items.T)[user, item], abs=0.05)
    # each user's factor solves the normal equations of its own ratings
    params = model.params()
    factors = params["users"] @ params["items"].T
    assert np.abs(factors - users @ items.T)[given].max() < 0.05


# -- what goes wrong on a member ----------------------------------------------------------------------------------


def test_an_exception_on_another_worker_is_told_once_with_its_traceback(small, tmp_path: Path):
    log = str(tmp_path / "calls")

    def broken(params, batch):
        if 1002 in batch["id"]:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
            raise KeyError("boom")
        return 0.0, params

    objective = objectives.custom(start_at_zero, broken, columns=("id",), needs_target=False)
    with pytest.raises(errors.UserFunctionError) as caught:
        hw.train(hw.range(1003, partitions=3), objective=objective, epochs=2, batch_size=100).compute(small)
    text = str(caught.value)
    assert re.search(r"broken\.value_and_grad raised KeyError: 'boom'", text)
    assert re.search(r"in shard 7, batch \d+ .*; it got id: int64\[\d+\]", text)
    assert re.search(r"test_training\.py\", line \d+, in broken", text)
    assert len(Path(log).read_text().split()) == 1  # the user's mistake isn't tried again


def test_a_callback_that_raises_is_told(small):
    def watch(metrics):
        if metrics["step"] == 2:
            raise ValueError("enough")

    model = hw.train(rows(), objective=objectives.LogisticRegression(), target="y", callbacks=[watch])
    with pytest.raises(
        errors.UserFunctionError, match=r"the callback .*watch raised ValueError: enough\nafter step 2"
    ):
        model.compute(small)


def test_a_loss_that_is_not_finite_names_its_batch(small):
    bad = rows().with_columns(x0=hw.when(hw.col("id") == 700).then(float("inf")).otherwise(hw.col("x0")))
    model = hw.train(
        bad, objective=objectives.LinearRegression(), target="z", features=FEATURES, batch_size=100
    )
    with pytest.raises(errors.DivergedError, match=r"isn't finite in shard 5, at step \d+ of epoch 1"):
        model.compute(small)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_fewer_rows_than_workers_or_shards(session, inline, count):
    few = {"objective": objectives.LinearRegression(), "target": "z", "features": FEATURES, "epochs": 3}
    assert hw.train(rows(count), **few).digest(session) == hw.train(rows(count), **few).digest(inline)


def test_no_rows_at_all(small):
    nothing = rows().filter(hw.col("id") < 0)
    with pytest.raises(errors.ParameterError, match=r"no rows to train on.*filter"):
        hw.train(nothing, objective=objectives.LinearRegression(), target="z").compute(small)


def test_vectors_of_different_lengths_on_different_workers(small):
    vectors = [[1.0, 2.0]] * 500 + [[1.0, 2.0, 3.0]] * 500
    uneven = hw.from_arrow({"v": vectors, "y": [0, 1] * 500}, partitions=4)
    with pytest.raises(errors.HeadwaterError, match=r"vectors of 'v'.*2.*3.*one length"):
        hw.train(uneven, objective=objectives.LogisticRegression(), target="y").compute(small)


# -- a function that repeats itself in one process only ------------------------------------------------------------


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """A pipe that holds its readers, and what lets them go on, for good."""
    path = str(tmp_path / "gate")
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield path, lambda: os.write(end, b"." * 4096)
    os.close(end)


@pytest.mark.fault
def test_a_model_that_comes_out_different_when_it_is_made_again_names_the_function(gate, tmp_path: Path):
    """A gang of one trains, and its node dies while another output is still computed."""
    path, open_gate = gate
    log = tmp_path / "process"

    def by_process(params, batch):
        """The same within a process, so that computing it twice there tells nothing."""
        log.write_text(str(os.getpid()))
        return 0.0, {"seen": np.full_like(params["seen"], os.getpid())}

    def held(batch):
        if 0 in batch["id"]:
            with open(path, "rb", buffering=0) as pipe:
                pipe.read(1)
        return batch

    objective = objectives.custom(start_at_zero, by_process, columns=("id",), needs_target=False)
    numbers = hw.range(100, partitions=4)
    model = hw.train(numbers, objective=objective, steps=3, strategy=hw.AllReduce(workers=1))
    late = numbers.map_batches(held, schema=numbers.schema)
    killed: list[str] = []

    with ChaosCluster(nodes=3) as cluster:

        def observe(snapshot) -> None:
            done = any(s.label.startswith("train") and s.state == "finished" for s in snapshot.stages)
            if done and not killed:
                node = cluster.node_of(int(log.read_text()))
                killed.append(node.name)
                cluster.kill_node(node)
                open_gate()

        with (
            hw.Session(cluster.address, progress=observe, journal=False, backup_tasks=False) as session,
            pytest.raises(
                errors.NonDeterministicError,
                match=r"came out different.*train\(by_process\), .*test_training\.py:\d+",
            ),
        ):
            session.run({"model": model, "late": late}).close()
    assert killed
