"""Gradients on a device: as the twin's and as PyTorch's, and bit for bit where no exponential is in them."""

import numpy as np
import pytest

from headwater.ops.device.arrays.gradients import linear_gradient, residuals
from headwater.ops.device.arrays.row_segments import segment_rows
from headwater.ops.device.arrays.tile_sums import column_sums


def drawn(rows, d, dtype, weighted):
    rng = np.random.default_rng(rows + d)
    x = rng.normal(size=(rows, d)).astype(dtype)
    weight = (rng.integers(0, 4, rows) / 3).astype(dtype) if weighted else None
    return x, rng.integers(0, 2, rows), weight, rng.normal(size=d).astype(dtype), np.asarray(0.3, dtype)


def there(arrays, xp):
    return [None if array is None else xp.asarray(array) for array in arrays]


@pytest.mark.parametrize(
    ("rows", "d", "dtype"),
    [
        (0, 3, np.float32),
        (1, 1, np.float64),
        (2048, 20, np.float32),
        (2 * 2048 + 77, 5, np.float64),
        (300, 128, np.float64),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_linear_gradients_are_the_twins(rows, d, dtype, weighted, kind, xp):
    arrays = drawn(rows, d, dtype, weighted)
    expected = linear_gradient(kind, *arrays, np)
    result = linear_gradient(kind, *there(arrays, xp), xp)
    for name, one, other in zip(expected._fields, expected, result):
        if kind == "squared" or name == "weight":
            assert one.tobytes() == other.get().tobytes(), name
        else:
            tolerance = 1e-5 if dtype == np.float32 else 1e-12
            np.testing.assert_allclose(other.get(), one, rtol=tolerance, atol=tolerance * max(1, rows))


def test_cuts_and_runs_change_no_bits(xp):
    arrays = there(drawn(6000, 7, np.float32, True), xp)
    first, second = (linear_gradient("logistic", *arrays, xp) for _ in range(2))
    assert all(one.get().tobytes() == other.get().tobytes() for one, other in zip(first, second))


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (777, 3), (500, 10), (100, 32), (90, 100)])
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_as_twin_and_pytorch(rows, classes, weighted, xp):
    rng = np.random.default_rng(rows)
    z, y = rng.normal(size=(rows, classes)) * 5, rng.integers(0, classes, rows)
    weight = rng.random(rows) + 0.1 if weighted else None
    expected = residuals("softmax", z, y, weight, np)
    loss, slope = residuals("softmax", *there((z, y, weight), xp), xp)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-13)
    np.testing.assert_allclose(slope.get(), expected[1], rtol=1e-12, atol=1e-16)
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(z, requires_grad=True)
    losses = torch.nn.functional.cross_entropy(tensor, torch.tensor(y), reduction="none")
    share = torch.full((rows,), 1 / rows) if weight is None else torch.tensor(weight / weight.sum())
    mean = (losses * share).sum()
    mean.backward()
    np.testing.assert_allclose(loss, float(mean.detach()), rtol=1e-6)
    np.testing.assert_allclose(slope.get(), tensor.grad.numpy(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_residuals_of_extremes(kind, xp):
    z = np.array([0.0, -0.0, 1e4, -1e4, 800.0, -3.5])
    y = np.array([True, False, True, True, False, True])
    loss, slope = residuals(kind, xp.asarray(z), xp.asarray(y), None, xp)
    expected = residuals(kind, z, y, None, np)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-13)
    np.testing.assert_allclose(slope.get(), expected[1], rtol=1e-13, atol=1e-300)


def test_a_class_that_is_not_there_is_no_number(xp):
    loss, _ = residuals("softmax", xp.asarray(np.zeros((2, 3))), xp.asarray(np.array([0, 3])), None, xp)
    assert np.isnan(loss)


@pytest.mark.parametrize("shape", [(0,), (1,), (5000,), (0, 3), (2048, 1), (4100, 33), (33 * 2048 + 5, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_column_sums_have_the_twins_bits(shape, dtype, xp):
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    factors = np.random.default_rng(1).normal(size=shape[0]).astype(dtype)
    for given in (None, factors):
        expected = column_sums(values, np, given)
        result = column_sums(xp.asarray(values), xp, None if given is None else xp.asarray(given))
        assert expected.tobytes() == result.get().tobytes()
    np.testing.assert_allclose(column_sums(values, np), values.sum(axis=0, dtype=np.float64), atol=1e-9)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(xp):
    rows = (1 << 27) + 3
    x = xp.ones((rows, 17), dtype=np.float32)
    x[-1] = 2
    assert column_sums(x, xp).get().tolist() == [rows + 1.0] * 17
    weights = xp.zeros(17, dtype=np.float32)
    sums = linear_gradient("squared", x, xp.ones(rows, dtype=np.float32), None, weights, None, xp)
    assert float(sums.weight) == rows
    assert sums.weights.get().tolist() == [-(rows + 1.0)] * 17


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (999, 7), (3000, 66)])
def test_segments_have_the_twins_bits(rows, width, xp):
    rng = np.random.default_rng(rows)
    values = rng.normal(size=(rows, width))
    starts = np.unique(np.append(rng.integers(0, rows, rows // 5), 0)).astype(np.int64)
    expected = segment_rows(values, starts, np)
    result = segment_rows(xp.asarray(values), xp.asarray(starts), xp)
    assert result.get().tobytes() == expected.tobytes()
    parts = np.split(values, starts[1:])
    np.testing.assert_allclose(expected, [part.sum(axis=0) for part in parts], atol=1e-12)
    assert segment_rows(xp.zeros((0, width)), xp.zeros(0, dtype=np.int64), xp).shape == (0, width)
