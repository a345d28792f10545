"""K-means, Gaussian mixtures, PCA and ALS against scikit-learn, and against dense NumPy."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
from sklearn import cluster, decomposition, mixture

from headwater.errors import HeadwaterError, ParameterError, TypeMismatchError
from headwater.ops.objectives.als import ALS
from headwater.ops.objectives.gmm import GaussianMixture
from headwater.ops.objectives.kmeans import KMeans
from headwater.ops.objectives.pca import PCA
from headwater.ops.optim.solvers import lbfgs
from headwater.ops.training import alternating
from headwater.ops.training.lloyd import choose
from headwater.ops.training.local_shard import local_shards, make_info, run_locally
from headwater.ops.training.program import Settings


def blobs(rows=20_000, width=5, k=6, apart=4.0, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((k, width)) * apart
    which = rng.integers(k, size=rows)
    mixed = rng.standard_normal((k, width, width)) / np.sqrt(width)
    x = means[which] + np.einsum("nij,nj->ni", mixed[which], rng.standard_normal((rows, width)))
    return (x + 100).astype(dtype)


def fit(objective, columns, shards=8, seed=0):
    info = make_info(columns, shards=shards, seed=seed)
    objective.check(info)
    program = objective.program(Settings())
    state = run_locally(program, local_shards(columns, info), info)
    assert program.progress(state) == 1.0
    return program, state, program.params(state)


def repeat(x, weight):
    return np.repeat(x, weight, axis=0)


class TestKMeans:
    @pytest.mark.parametrize(
        ("k", "dtype"), [(6, "float64"), (6, "float32"), (50, "float64"), (50, "float32")]
    )
    def test_from_the_same_centers_it_is_scikit_learns(self, k, dtype):
        x = blobs(dtype=dtype)
        start = x[:: len(x) // k][:k]
        exact = {"max_iter": 20, "tol": 0, "n_init": 1, "algorithm": "lloyd"}
        reference = cluster.KMeans(k, init=start.astype("float64"), **exact).fit(x.astype("float64"))
        program, state, params = fit(KMeans(k, start, max_iterations=20, tolerance=0), {"x": x})
        wrong = {"float64": 1e-9, "float32": 0.05}[dtype]  # rows between two centers
        np.testing.assert_allclose(params["centers"], reference.cluster_centers_, atol=wrong)
        predicted = KMeans(k).predict(params, {"x": x})
        assert predicted["cluster"].dtype == np.int32
        assert np.mean(predicted["cluster"] == reference.predict(x.astype("float64"))) > 0.999
        distance = np.linalg.norm(x - params["centers"][predicted["cluster"]], axis=1)
        np.testing.assert_allclose(predicted["distance"], distance, rtol=1e-4, atol=1e-4)
        if state["iteration"] < 20:
            assert program.metrics(state)["loss"] == pytest.approx(reference.inertia_ / len(x), rel=1e-4)

    @pytest.mark.parametrize("k", [6, 40])
    def test_drawn_centers_are_as_good_as_scikit_learns(self, k):
        x = blobs(k=k, apart=6)
        reference = cluster.KMeans(k, n_init=5, random_state=0).fit(x)
        for seed in range(3):
            _, _, params = fit(KMeans(k), {"x": x}, seed=seed)
            distance = KMeans(k).predict(params, {"x": x})["distance"]
            assert (distance**2).sum() < 1.1 * reference.inertia_

    def test_rows_at_random_are_centers_too(self):
        x = blobs()
        _, state, params = fit(KMeans(6, "random", max_iterations=1, empty="keep"), {"x": x})
        assert state["iteration"] == 1
        assert np.isfinite(params["centers"]).all()
        assert np.any(
            fit(KMeans(6, "random", max_iterations=1), {"x": x}, seed=1)[2]["centers"] != params["centers"]
        )

    @pytest.mark.parametrize("k", [4, 40])
    def test_weights_count_as_repeated_rows(self, k):
        rng = np.random.default_rng(3)
        x, weight = blobs(3000), rng.integers(0, 4, 3000)
        start = x[:k] + rng.standard_normal((k, 5))
        options = {"max_iterations": 5, "tolerance": 0, "empty": "keep"}
        weighted = fit(KMeans(k, start, **options), {"x": x, "weight": weight.astype(float)})
        repeated = fit(KMeans(k, start, **options), {"x": repeat(x, weight)})
        np.testing.assert_allclose(weighted[2]["centers"], repeated[2]["centers"], atol=1e-8)
        assert weighted[0].metrics(weighted[1])["loss"] == pytest.approx(
            repeated[0].metrics(repeated[1])["loss"]
        )

    def test_an_empty_cluster_is_kept_or_takes_the_farthest_row(self):
        x = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [50.0]])
        start = np.array([[1.0], [10.5], [1000.0]])
        _, _, kept = fit(KMeans(3, start, empty="keep"), {"x": x}, shards=2)
        assert kept["centers"][2] == 1000
        _, _, moved = fit(KMeans(3, start, empty="reseed"), {"x": x}, shards=2)
        assert sorted(moved["centers"][:, 0]) == [1.0, 10.5, 50.0]

    @pytest.mark.parametrize("init", ["k-means++", "random"])
    def test_more_clusters_than_different_rows(self, init):
        x = np.repeat([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]], 40, axis=0)
        program, state, params = fit(KMeans(8, init), {"x": x})
        predicted = KMeans(8).predict(params, {"x": x})
        assert (predicted["distance"] < 1e-6).all()
        assert len(np.unique(predicted["cluster"])) == 3
        assert program.metrics(state)["loss"] == pytest.approx(0, abs=1e-9)

    def test_constant_columns_and_more_shards_than_rows(self):
        x = np.column_stack([np.full(5, 7.0), [0.0, 0.1, 5.0, 5.1, 5.2]])
        _, _, params = fit(KMeans(2), {"x": x}, shards=16)
        assert sorted(map(tuple, params["centers"].round(9))) == [(7.0, 0.05), (7.0, 5.1)]

    def test_mistakes_are_said_early(self):
        with pytest.raises(ParameterError, match="whole number, 1 or more"):
            KMeans(0)
        with pytest.raises(ParameterError, match=r"k-means\+\+"):
            KMeans(3, "kmeans++")
        with pytest.raises(ParameterError, match="one row for each of 3"):
            KMeans(3, np.zeros((2, 5)))
        with pytest.raises(ParameterError, match="features"):
            fit(KMeans(2, np.zeros((2, 4))), {"x": blobs(10)})
        with pytest.raises(ParameterError, match="only 10 training rows"):
            fit(KMeans(11), {"x": blobs(10)})
        with pytest.raises(ParameterError, match="Leave optimizer= out"):
            KMeans(2).program(Settings(optimizer=lbfgs()))
        with pytest.raises(ParameterError, match="ends by itself, and got steps=9"):
            KMeans(2).program(Settings(steps=9))
        x = blobs(100)
        x[4, 2] = np.nan
        with pytest.raises(HeadwaterError, match="NaN or infinite"):
            fit(KMeans(2), {"x": x})

    def test_few_points_are_chosen_well(self):
        points = np.array([[0.0], [0.1], [9.0], [9.1], [20.0]])
        centers = choose(points, np.ones(5), 3, np.random.default_rng(0))
        assert sorted(centers[:, 0]) == pytest.approx([0.05, 9.05, 20.0])


class TestGaussianMixture:
    @pytest.mark.parametrize("covariance", ["full", "diag"])
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_from_the_same_start_each_iteration_is_scikit_learns(self, covariance, dtype):
        x = blobs(dtype=dtype)
        k, width = 4, x.shape[1]
        means = x[:k].astype("float64")
        covariances = (
            np.tile(np.eye(width) * 4, (k, 1, 1)) if covariance == "full" else np.full((k, width), 4.0)
        )
        reference = mixture.GaussianMixture(
            k,
            covariance_type=covariance,
            means_init=means,
            weights_init=np.full(k, 1 / k),
            precisions_init=np.linalg.inv(covariances) if covariance == "full" else 1 / covariances,
            max_iter=7,
            tol=0,
        )
        with pytest.warns(UserWarning, match="did not converge"):
            reference.fit(x.astype("float64"))
        init = {"weights": np.full(k, 1 / k), "means": means, "covariances": covariances}
        objective = GaussianMixture(k, covariance, init=init, max_iterations=7, tolerance=0)
        program, state, params = fit(objective, {"x": x})
        np.testing.assert_allclose(params["weights"], reference.weights_, atol=1e-8)
        np.testing.assert_allclose(params["means"], reference.means_, atol=1e-7)
        np.testing.assert_allclose(params["covariances"], reference.covariances_, atol=1e-7)
        assert program.metrics(state)["log_likelihood"] == pytest.approx(reference.lower_bound_, abs=1e-9)
        predicted = objective.predict(params, {"x": x})
        np.testing.assert_allclose(
            predicted["score"], reference.score_samples(x.astype("float64")), atol=1e-6
        )
        assert np.mean(predicted["cluster"] == reference.predict(x.astype("float64"))) > 0.9999

    def test_from_k_means_it_finds_the_components(self):
        x = blobs(k=4, apart=8)
        _, state, params = fit(GaussianMixture(4), {"x": x})
        reference = mixture.GaussianMixture(4, n_init=3, random_state=0).fit(x)
        order, others = params["means"][:, 0].argsort(), reference.means_[:, 0].argsort()
        np.testing.assert_allclose(params["means"][order], reference.means_[others], atol=0.02)
        np.testing.assert_allclose(params["weights"][order], reference.weights_[others], atol=0.002)
        likelihoods = [figures["log_likelihood"] for figures in state["history"]]
        assert likelihoods == sorted(likelihoods)

    @pytest.mark.parametrize("covariance", ["full", "diag"])
    def test_weights_count_as_repeated_rows(self, covariance):
        weight = np.random.default_rng(3).integers(0, 4, 3000)
        x = blobs(3000)
        width = x.shape[1]
        wide = np.tile(np.eye(width), (3, 1, 1)) if covariance == "full" else np.ones((3, width))
        init = {"weights": np.full(3, 1 / 3), "means": x[:3], "covariances": wide}
        options = {"init": init, "max_iterations": 4, "tolerance": 0}
        weighted = fit(GaussianMixture(3, covariance, **options), {"x": x, "weight": weight.astype(float)})[2]
        repeated = fit(GaussianMixture(3, covariance, **options), {"x": repeat(x, weight)})[2]
        for name, value in weighted.items():
            np.testing.assert_allclose(value, repeated[name], atol=1e-8)

    @pytest.mark.parametrize("covariance", ["full", "diag"])
    def test_constant_columns_equal_rows_and_empty_shards(self, covariance):
        x = np.column_stack([np.full(12, 7.0), np.repeat([0.0, 3.0], 6)])
        _, _, params = fit(GaussianMixture(3, covariance), {"x": x}, shards=16)
        assert all(np.isfinite(value).all() for value in params.values())
        assert params["weights"].sum() == pytest.approx(1)
        predicted = GaussianMixture(3, covariance).predict(params, {"x": x})
        assert np.isfinite(predicted["score"]).all()

    def test_a_component_that_collapses_is_an_error_that_says_what_helps(self):
        x = np.column_stack([np.full(50, 7.0), np.arange(50.0)])
        with pytest.raises(HeadwaterError, match="reg_covar"):
            fit(GaussianMixture(2, reg_covar=0), {"x": x})

    def test_mistakes_are_said_early(self):
        with pytest.raises(ParameterError, match="full"):
            GaussianMixture(2, "tied")
        with pytest.raises(ParameterError, match="shape"):
            GaussianMixture(
                2, init={"weights": [1, 1], "means": np.zeros((2, 3)), "covariances": np.zeros((2, 3))}
            )
        with pytest.raises(ParameterError, match="k-means"):
            GaussianMixture(2, init="random")


class TestPCA:
    @pytest.mark.parametrize("whiten", [False, True])
    def test_it_is_scikit_learns(self, whiten):
        x = blobs()
        reference = decomposition.PCA(3, whiten=whiten, svd_solver="full").fit(x)
        program, state, params = fit(PCA(3, whiten=whiten), {"x": x})
        np.testing.assert_allclose(params["mean"], reference.mean_, atol=1e-10)
        np.testing.assert_allclose(params["components"], reference.components_, atol=1e-9)
        np.testing.assert_allclose(params["explained_variance"], reference.explained_variance_)
        np.testing.assert_allclose(params["explained_variance_ratio"], reference.explained_variance_ratio_)
        predicted = PCA(3, whiten=whiten).predict(params, {"x": x})["components"]
        np.testing.assert_allclose(predicted, reference.transform(x), atol=1e-8)
        assert program.metrics(state)["explained"] == pytest.approx(reference.explained_variance_ratio_.sum())

    @pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
    def test_a_share_takes_as_many_components_as_scikit_learn(self, share):
        x = blobs()
        assert (
            len(fit(PCA(share), {"x": x})[2]["components"]) == decomposition.PCA(share).fit(x).n_components_
        )

    def test_a_mean_far_from_zero_costs_no_digits(self):
        x = blobs() + 1e8
        near = fit(PCA(5), {"x": blobs() - 100})[2]
        far = fit(PCA(5), {"x": x})[2]
        np.testing.assert_allclose(far["explained_variance"], near["explained_variance"], rtol=1e-6)

    def test_constant_columns_whiten_to_zero(self):
        x = np.column_stack([np.full(9, 7.0), np.arange(9.0), np.full(9, -1.0)])
        _, _, params = fit(PCA(3, whiten=True), {"x": x}, shards=16)
        predicted = PCA(3, whiten=True).predict(params, {"x": x})["components"]
        assert predicted[:, 0].std(ddof=1) == pytest.approx(1)
        assert (predicted[:, 1:] == 0).all()

    def test_weights_count_as_repeated_rows(self):
        x, weight = blobs(3000), np.random.default_rng(3).integers(0, 4, 3000)
        weighted = fit(PCA(2), {"x": x, "weight": weight.astype(float)})[2]
        repeated = fit(PCA(2), {"x": repeat(x, weight)})[2]
        np.testing.assert_allclose(weighted["components"], repeated["components"], atol=1e-9)
        np.testing.assert_allclose(weighted["explained_variance"], repeated["explained_variance"])

    def test_mistakes_are_said_early(self):
        with pytest.raises(ParameterError, match="share of the variance"):
            PCA(1.5)
        with pytest.raises(ParameterError, match="only 5 features"):
            fit(PCA(6), {"x": blobs(100)})
        with pytest.raises(HeadwaterError, match="at least two"):
            fit(PCA(1), {"x": blobs(1)})


def ratings(rows=6000, users=90, items=40, seed=0):
    rng = np.random.default_rng(seed)
    columns = {"user": rng.integers(users, size=rows), "item": rng.integers(items, size=rows).astype("int32")}
    columns["user"][columns["user"] == 17] = 18  # a number that nobody has
    mine, its = rng.standard_normal((users, 3)), rng.standard_normal((items, 3))
    product = (mine[columns["user"]] * its[columns["item"]]).sum(axis=1)
    return {**columns, "y": (product + 0.1 * rng.standard_normal(rows)).astype("float32")}


def dense_als(columns, start, rank, reg, iterations, implicit=False, alpha=1.0):
    """Alternating least squares, one system after another; the factors of items it starts from are given."""
    sizes = [int(columns[name].max()) + 1 for name in ("user", "item")]
    factors = [np.zeros((sizes[0], rank)), start]
    y = columns["y"].astype("float64")
    for _ in range(iterations):
        for side, (own, other) in enumerate((("user", "item"), ("item", "user"))):
            fixed = factors[1 - side]
            for number in range(sizes[side]):
                of = np.flatnonzero(columns[own] == number)
                f, r = fixed[columns[other][of]], y[of]
                if implicit:
                    a = fixed.T @ fixed + f.T @ (f * (alpha * abs(r))[:, None])
                    b = f.T @ ((1 + alpha * abs(r)) * (r > 0))
                    n = np.count_nonzero(r > 0)
                else:
                    a, b, n = f.T @ f, f.T @ r, len(r)
                factors[side][number] = np.linalg.solve(a + reg * n * np.eye(rank), b) if n else 0
    return factors


class TestALS:
    @pytest.mark.parametrize("implicit", [False, True])
    @pytest.mark.parametrize("many_steps", [False, True])
    def test_it_is_the_dense_computation(self, implicit, many_steps, monkeypatch):
        if many_steps:  # ranges of 14 users
            monkeypatch.setattr(alternating, "STEP_BYTES", 8 * (10 + 4 + 1) * 14)
        columns = ratings()
        objective = ALS("user", "item", rank=4, reg=0.02, iterations=3, implicit=implicit, alpha=2.0)
        info = make_info(columns)
        program = objective.program(Settings())
        started = []
        state = run_locally(
            program, local_shards(columns, info), info, lambda s: started.append(s["items"].copy())
        )
        params = program.params(state)
        users, items = dense_als(columns, started[0], 4, 0.02, 3, implicit, 2.0)
        np.testing.assert_allclose(params["users"], users, atol=1e-9)
        np.testing.assert_allclose(params["items"], items, atol=1e-9)
        product = users @ items.T
        y, pairs = columns["y"].astype("float64"), (columns["user"], columns["item"])
        if implicit:
            confidence, wanted = 1 + 2 * abs(y), y > 0
            loss = (product**2).sum() + (
                confidence * (wanted - product[pairs]) ** 2 - product[pairs] ** 2
            ).sum()
        else:
            loss = ((y - product[pairs]) ** 2).sum()
        assert program.metrics(state)["loss"] == pytest.approx(loss / len(y), rel=1e-9)
        assert len(state["history"]) == 3

    def test_the_unknown_is_predicted_as_nan(self):
        _, state, params = fit(ALS("user", "item", rank=3, reg=0.01), ratings())
        assert state["history"][-1]["loss"] < 0.02
        batch = {"user": np.array([0, 17, 90, -1, 5]), "item": np.array([3, 3, 3, 3, 400])}
        predicted = ALS("user", "item").predict(params, batch)["prediction"]
        assert np.isnan(predicted).tolist() == [False, True, True, True, True]
        assert predicted[0] == pytest.approx(params["users"][0] @ params["items"][3])

    def test_weights_count_as_repeated_rows(self):
        columns, weight = ratings(2000), np.random.default_rng(3).integers(0, 4, 2000)
        options = {"rank": 3, "iterations": 2, "users": 90, "items": 40}
        weighted = fit(ALS("user", "item", **options), {**columns, "weight": weight.astype(float)})[2]
        repeated = fit(ALS("user", "item", **options), {n: np.repeat(c, weight) for n, c in columns.items()})[
            2
        ]
        for name, value in weighted.items():
            np.testing.assert_allclose(value, repeated[name], atol=1e-9)

    def test_few_rows_and_many_shards(self):
        columns = {name: column[:3] for name, column in ratings().items()}
        _, _, params = fit(ALS("user", "item", rank=2), columns, shards=8)
        assert np.isfinite(params["users"]).all()

    def test_mistakes_are_said_early(self):
        columns = ratings(50)
        with pytest.raises(ParameterError, match="two columns"):
            ALS("user", "user")
        with pytest.raises(ParameterError, match="reg=0"):
            ALS("user", "item", reg=0)
        with pytest.raises(TypeMismatchError, match="OrdinalEncode"):
            fit(ALS("user", "item"), {**columns, "item": columns["item"].astype("float32")})
        with pytest.raises(HeadwaterError, match=r"users=2.*or more"):
            fit(ALS("user", "item", users=2), columns)
        columns["user"][3] = -1
        with pytest.raises(HeadwaterError, match="holds -1"):
            fit(ALS("user", "item"), columns)


CASES = {
    "kmeans": (KMeans(7), "x"),
    "kmeans-many": (KMeans(40, "random", max_iterations=5), "x"),
    "gmm-full": (GaussianMixture(3, max_iterations=5), "x"),
    "gmm-diag": (GaussianMixture(3, "diag", max_iterations=5), "x"),
    "pca": (PCA(0.8), "x"),
    "als": (ALS("user", "item", rank=3, iterations=2), "ratings"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_a_state_that_travelled(case):
    objective, data = CASES[case]
    columns = {"x": blobs(30_000, dtype="float32")} if data == "x" else ratings(30_000)
    info = make_info(columns, shards=5, seed=4)
    shards = local_shards(columns, info)
    whole = run_locally(objective.program(Settings()), shards, info)
    state = objective.program(Settings()).start(info)
    while not (program := pickle.loads(pickle.dumps(objective.program(Settings())))).finished(state):
        state = pickle.loads(pickle.dumps(state, 5))  # other workers take over after each step
        parts = [program.statistics(state, shard) for shard in reversed(shards)][::-1]
        described = [{name: (array.shape, array.dtype.str) for name, array in part.items()} for part in parts]
        assert all(one == described[0] for one in described)
        assert all(array.dtype == np.float64 and array.size for array in parts[0].values())
        pairs = {n: (parts[0][n] + parts[1][n]) + (parts[2][n] + parts[3][n]) for n in parts[0]}
        state = program.update(state, {name: pairs[name] + parts[4][name] for name in pairs})
    assert state["step"] == whole["step"]
    ours, theirs = program.params(state), program.params(whole)
    for name, value in ours.items():
        assert np.asarray(value).tobytes() == np.asarray(theirs[name]).tobytes()
    assert program.metrics(state) == program.metrics(whole)


@pytest.mark.parametrize("case", CASES)
def test_predictions_are_what_was_declared(case):
    objective, data = CASES[case]
    columns = {"x": blobs(500, dtype="float32")} if data == "x" else ratings(500)
    params = fit(objective, columns)[2]
    batch = {name: column for name, column in columns.items() if name != "y"}
    predicted, declared = objective.predict(params, batch), objective.output(None)
    assert list(predicted) == [field.name for field in declared]
    for field in declared:
        item = field.type.value_type if pa.types.is_nested(field.type) else field.type
        assert pa.from_numpy_dtype(predicted[field.name].dtype) == item
        assert len(predicted[field.name]) == 500
    nothing = objective.predict(params, {name: column[:0] for name, column in batch.items()})
    assert all(len(column) == 0 for column in nothing.values())
