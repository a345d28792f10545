"""Optimizers give CuPy's arrays the bits they give NumPy's, in one pass each."""

import numpy as np
import pytest

from headwater.ops import optim
from headwater.ops.optim import parts

SHAPES = {"w": (83, 40), "b": (41,), "one": (), "none": (0,)}
OPTIMIZERS = [
    optim.sgd(0.1),
    optim.sgd(0.1, l2=0.1),
    optim.momentum(0.1),
    optim.nesterov(0.1, l2=0.01),
    optim.adagrad(initial=0.1),
    optim.adam(),
    optim.adamw(optim.cosine(0.1, steps=10)),
    optim.lion(0.1, weight_decay=0.1),
    optim.lamb(0.1, weight_decay=0.01),
    optim.chain(optim.clip_by_value(1.0), optim.clip_by_global_norm(1.0), optim.adam()),
    optim.chain(optim.clip_by_global_norm(1.0), optim.clip_by_value(0.1), optim.l2(0.1), optim.adamw(0.1)),
    optim.chain(optim.l2(0.1), optim.clip_by_value(0.1), optim.weight_decay(0.1), optim.sgd(0.1)),
]


def drawn(rng, dtype):
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def fitted(optimizer, xp, dtype, odd=False):
    rng = np.random.default_rng(0)
    params = {name: xp.asarray(array) for name, array in drawn(rng, dtype).items()}
    state = optimizer.init(params)
    for step in range(4):
        grads = drawn(rng, dtype)
        if odd:
            grads["w"][0, :5] = [np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).smallest_subnormal]
        params, state = optimizer.update(
            {name: xp.asarray(array) for name, array in grads.items()}, state, params, step
        )
    return {name: array.get() if xp is not np else array for name, array in {**params, **state}.items()}


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [(optimizer, np.float32) for optimizer in OPTIMIZERS]
    + [(optimizer, np.float64) for optimizer in (OPTIMIZERS[6], OPTIMIZERS[7])],
    ids=repr,
)
def test_optimizers_have_the_same_bits(optimizer, dtype, xp):
    expected, result = fitted(optimizer, np, dtype), fitted(optimizer, xp, dtype)
    assert list(expected) == list(result)
    for name, array in expected.items():
        assert array.dtype == result[name].dtype
        assert array.tobytes() == result[name].tobytes(), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:8], ids=repr)
def test_what_is_not_finite_stays_so(optimizer, xp):
    expected, result = (
        fitted(optimizer, np, np.float32, odd=True),
        fitted(optimizer, xp, np.float32, odd=True),
    )
    for name, array in expected.items():
        np.testing.assert_array_equal(result[name], array, name)


def test_one_pass_does_for_built_in_optimizers(xp, monkeypatch):
    def unfused(*args):
        raise AssertionError("ran operation by operation")

    monkeypatch.setattr(parts.Part, "apply", unfused)
    for optimizer in OPTIMIZERS[:8]:
        for part in optimizer.update.__self__.parts:
            monkeypatch.setattr(type(part), "apply", unfused)
    for optimizer in OPTIMIZERS[:8]:
        fitted(optimizer, xp, np.float32)


def test_arrays_may_begin_anywhere(xp):
    """Slices of a vector, as leaves of a tree are, needn't be aligned."""
    values = np.random.default_rng(1).normal(size=1001).astype(np.float32)
    optimizer, results = optim.adam(0.1), []
    for module in (np, xp):
        vector = module.array(values)
        params = {"p": vector[3:]}
        params, _ = optimizer.update({"p": module.asarray(values[:-3])}, optimizer.init(params), params, 0)
        results.append(params["p"] if module is np else params["p"].get())
    assert results[0].tobytes() == results[1].tobytes()


def test_norms_have_the_same_bits(xp):
    arrays = drawn(np.random.default_rng(2), np.float64)
    assert optim.global_norm({n: xp.asarray(a) for n, a in arrays.items()}) == optim.global_norm(arrays)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(xp):
    size = (1 << 31) + 5
    params = {"w": xp.ones(size, dtype=np.float32)}
    grads = {"w": xp.ones(size, dtype=np.float32)}
    params, _ = optim.sgd(0.5).update(grads, {}, params, 0)
    assert bool((params["w"] == 0.5).all())
