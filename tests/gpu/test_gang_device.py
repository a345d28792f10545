"""Gangs of worker processes train on devices: the same bits for any number of members, and a CPU's numbers."""

import shutil

import numpy as np
import pytest

import headwater as hw
from headwater.ops import objectives, optim

from .conftest import EMULATION, real_cupy

pytestmark = pytest.mark.cluster

ROWS, WIDTH = 2005, 5


def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, WIDTH))
    y = (x @ rng.normal(size=WIDTH) + rng.normal(size=ROWS) > 0).astype(np.int64)
    return hw.from_arrow({**{f"x{i}": x[:, i] for i in range(WIDTH)}, "y": y}, partitions=3)


def models(workers):
    plain = {"features": [f"x{i}" for i in range(WIDTH)], "target": "y"}
    logistic = {**plain, "objective": objectives.LogisticRegression(), "epochs": 1, "batch_size": 500}
    return {
        "adam": hw.train(
            rows(), **logistic, optimizer=optim.adamw(0.05), strategy=hw.AllReduce(shards=4, workers=workers)
        ),
        "sharded": hw.train(
            rows(),
            **logistic,
            strategy=hw.AllReduce(shards=4, workers=workers, sharded_state=True),
        ),
        "lbfgs": hw.train(
            rows(),
            **plain,
            objective=objectives.LogisticRegression(l2=0.01),
            optimizer=optim.lbfgs(4),
            strategy=hw.AllReduce(shards=4, workers=workers),
        ),
        "k-means": hw.train(
            rows(),
            **{**plain, "target": None},
            objective=objectives.KMeans(3),
            strategy=hw.AllReduce(shards=4, workers=workers),
        ),
    }


def trained(session, workers=None):
    with session:
        found = {name: model.compute(session) for name, model in models(workers).items()}
        return {name: (fitted.digest(), fitted.params()) for name, fitted in found.items()}


def on_devices(workers):
    return trained(
        hw.Session(workers=workers, threads_per_worker=1, progress=False, journal=False, device="gpu"),
        workers,
    )


def test_any_number_of_members_trains_the_same_bits(monkeypatch):
    if real_cupy() is None:
        if shutil.which("g++") is None:
            pytest.skip("neither a GPU with CuPy nor g++ to run kernels on the CPU")
        monkeypatch.syspath_prepend(str(EMULATION))
        monkeypatch.setenv("PYTHONPATH", str(EMULATION))
        monkeypatch.setenv("HEADWATER_BACKEND", "cupy")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    else:
        monkeypatch.delenv("HEADWATER_BACKEND", raising=False)
    expected = trained(hw.Session("inline", journal=False, device="cpu"))
    one, two = on_devices(1), on_devices(2)
    for name, (digest, params) in expected.items():
        assert one[name][0] == two[name][0], name
        assert one[name][0] != digest, name  # it did run there: sums have other last bits
        for key, array in params.items():
            np.testing.assert_allclose(
                two[name][1][key], array, rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}"
            )
