"""Rows put to centers on a device: the twin's bits, whatever the shape, and scikit-learn's clusters."""

import numpy as np
import pytest

from headwater.ops.device.arrays.assignment import CenterSums, fits


def both(xp, x, centers, weight=None, cuts=(), dtype=None, order="C"):
    dtype = x.dtype if dtype is None else dtype
    found = []
    for module in (np, xp):
        sums = CenterSums(centers, x[:100].mean(axis=0) if len(x) else np.zeros(x.shape[1]), dtype, module)
        labels = []
        for part, some in zip(
            np.split(x, cuts), np.split(weight, cuts) if weight is not None else [None] * (len(cuts) + 1)
        ):
            given = np.array(part, order=order)
            if module is np:
                labels.append(sums.add(given, some))
            else:
                there = xp.asarray(given).copy(order=order) if order == "F" else xp.asarray(given)
                labels.append(sums.add(there, None if some is None else xp.asarray(some)).get())
        total = sums.total()
        found.append((np.concatenate(labels), total if module is np else total.get()))
    return found


@pytest.mark.parametrize(
    ("rows", "k", "d", "dtype"),
    [
        (0, 3, 2, np.float32),
        (1, 1, 1, np.float64),
        (2048, 8, 16, np.float32),
        (5001, 64, 16, np.float32),
        (2500, 7, 5, np.float64),
        (2100, 5, 128, np.float64),  # 32 rows at a time, 8 threads each
        (2050, 33, 100, np.float32),
        (2050, 300, 20, np.float32),  # too many pairs for one block
        (300, 510, 3, np.float32),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_same_bits_as_the_twin(rows, k, d, dtype, weighted, xp):
    rng = np.random.default_rng(rows + k)
    x = rng.normal(size=(rows, d)).astype(dtype)
    centers = rng.normal(size=(k, d))
    weight = rng.integers(0, 5, rows).astype(dtype) / 3 if weighted else None
    expected, result = both(xp, x, centers, weight)
    assert expected[0].tobytes() == result[0].tobytes()
    assert expected[1].tobytes() == result[1].tobytes()


def test_columns_side_by_side_are_the_same_rows(xp):
    x = np.random.default_rng(1).normal(size=(3000, 6)).astype(np.float32)
    centers = x[:9].astype(np.float64)
    expected = both(xp, x, centers)[0]
    result = both(xp, x, centers, order="F")[1]
    assert expected[0].tobytes() == result[0].tobytes()
    assert expected[1].tobytes() == result[1].tobytes()


def test_cuts_at_tiles_change_nothing(xp):
    x = np.random.default_rng(2).normal(size=(4 * 2048 * 5 + 7, 2)).astype(np.float32)
    centers = x[:4].astype(np.float64)
    _, whole = both(xp, x, centers)
    _, cut = both(xp, x, centers, cuts=[8192, 3 * 8192])
    assert whole[1].tobytes() == cut[1].tobytes()


def test_of_equal_distances_the_lowest_center_counts(xp):
    x = np.array([[0.0], [1.0], [2.0], [np.nan]])
    sums = CenterSums(np.array([[1.0], [-1.0], [1.0], [3.0]]), np.zeros(1), np.float64, xp)
    assert sums.add(xp.asarray(x)).get().tolist() == [0, 0, 0, 0]


def test_sums_are_those_of_scikit_learn(xp):
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4000, 7)) + rng.integers(0, 4, (4000, 1)) * 4
    centers = x[:12]
    sums = CenterSums(centers, np.zeros(7), np.float64, xp)
    labels = sums.add(xp.asarray(x)).get()
    total = sums.total().get()
    oracle = cluster.KMeans(12, init=centers, n_init=1, max_iter=1).fit(x)
    np.testing.assert_array_equal(np.bincount(labels, minlength=12), total[:, -1])
    np.testing.assert_allclose(total[:, :-1] / total[:, -1:], oracle.cluster_centers_, rtol=1e-12)


def test_what_fits():
    assert [fits(*shape) for shape in ((64, 16), (510, 128), (511, 4), (4, 129))] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(xp):
    rows = (1 << 27) + 3
    x = xp.zeros((rows, 17), dtype=np.float32)
    x[rows // 2 :] = 1
    sums = CenterSums(np.array([np.zeros(17), np.ones(17)]), np.zeros(17), np.float32, xp)
    sums.add(x)
    half = float(rows - rows // 2)
    assert sums.total().get().tolist() == [[0.0] * 17 + [float(rows // 2)], [half] * 18]
