"""Optimizers give CuPy's arrays the values they give NumPy's."""

import numpy as np
import pytest

from headwater.ops import optim

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(300, 40)), "b": RNG.normal(size=40)}
GRADS = [{name: RNG.normal(size=array.shape) for name, array in PARAMS.items()} for _ in range(5)]


def fitted(optimizer, xp):
    params = {name: xp.array(array) for name, array in PARAMS.items()}
    state = optimizer.init(params)
    for step, grads in enumerate(GRADS):
        params, state = optimizer.update(
            {name: xp.array(array) for name, array in grads.items()}, state, params, step
        )
    return params


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.sgd(0.1, l2=0.1),
        optim.momentum(0.1),
        optim.nesterov(0.1),
        optim.adagrad(),
        optim.adamw(optim.cosine(0.1, steps=10)),
        optim.lion(0.1),
        optim.lamb(0.1),
        optim.chain(optim.clip_by_value(1.0), optim.clip_by_global_norm(1.0), optim.adam()),
    ],
    ids=repr,
)
def test_optimizers_agree(optimizer, xp):
    expected, result = fitted(optimizer, np), fitted(optimizer, xp)
    for name in PARAMS:
        np.testing.assert_allclose(result[name].get(), expected[name], rtol=1e-12, atol=1e-13)


def test_norms_have_the_same_bits(xp):
    on_device = {name: xp.array(array) for name, array in PARAMS.items()}
    assert optim.global_norm(on_device) == optim.global_norm(PARAMS)
