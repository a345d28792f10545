"""Hyperparameter search on real workers: trials side by side, and the same result when workers are killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import headwater as hw

pytestmark = pytest.mark.cluster

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SPACE = {"lr": hw.space.log_uniform(1e-3, 1e1), "l2": [0.0, 1e-3]}
METHOD = hw.SuccessiveHalving(trials=6, least=4, factor=2, seed=5)


@pytest.fixture(scope="module")
def session() -> Iterator[hw.Session]:
    with hw.Session(workers=2, progress=False) as session:
        yield session


def some_rows(count: int, seed: int) -> hw.Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3))
    y = (x @ [2.0, -1.0, 0.5] + rng.normal(size=count) > 0).astype(np.int64)
    return hw.from_numpy({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y})


def run(session: hw.Session, told: Callable[[dict[str, float]], None] | None = None) -> hw.SearchResult:
    """Search with a fitted preparation, telling each step."""
    raw, raw_valid = some_rows(3000, 0), some_rows(500, 1)
    prep = hw.prep.Standardize("a", "b", "c").fit(raw)
    train, valid = prep.transform(raw), prep.transform(raw_valid)

    def build(lr: float, l2: float, steps: int) -> hw.Model:
        return hw.train(
            train, target="y", objective=hw.objectives.LogisticRegression(l2=l2), optimizer=hw.optim.sgd(lr),
            steps=steps, batch_size=256, callbacks=[told] if told else [],
        )  # fmt: skip

    def score(model: hw.Model) -> hw.Dataset:
        return valid.predict(model).agg(hw.metrics.log_loss("y", "probability"))

    return hw.search(build, SPACE, score=score, maximize=False, method=METHOD, session=session)


@pytest.fixture(scope="module")
def expected() -> hw.SearchResult:
    """What one process finds."""
    with hw.Session("inline", workers=1, journal=False, progress=False) as session:
        return run(session)


def test_trials_run_on_all_workers_and_the_result_is_that_of_one_process(
    session: hw.Session, expected: hw.SearchResult, tmp_path: Path
):
    def told(metrics: dict[str, float]) -> None:
        (tmp_path / str(os.getpid())).touch()

    found = run(session, told)
    assert found.trials.equals(expected.trials)
    assert found.best.digest() == expected.best.digest()
    assert len(list(tmp_path.iterdir())) == 2
    trained = [[s.attempts for s in report.stages if s.training] for report in found.reports]
    assert trained == [[1] * 6, [1] * 3, [1]]


@pytest.mark.fault
def test_a_killed_workers_trials_are_redone_and_the_result_is_the_same(
    session: hw.Session, expected: hw.SearchResult, tmp_path: Path
):
    def told(metrics: dict[str, float]) -> None:
        rung = {3: "first", 7: "second"}.get(int(metrics["step"]))  # only trials of the second come to step 7
        if rung is None:
            return
        try:
            (tmp_path / rung).touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    found = run(session, told)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
    assert sum(report.recovery.workers_lost for report in found.reports) == 2
    assert found.trials.equals(expected.trials)
    assert found.best.digest() == expected.best.digest()
