"""Preparation through the engine, over several partitions, against scikit-learn on the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, StandardScaler

import headwater as hw
from headwater import col
from headwater.errors import HeadwaterError, SourceNotFoundError


@pytest.fixture(scope="module")
def session():
    options = hw.PlanOptions(partition_bytes=2048)
    with hw.Session("inline", workers=2, journal=False, options=options) as session:
        yield session


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    x = rng.normal(50, 9, 600)
    x[rng.random(600) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "id": np.arange(600),
            "x": x,
            "y": rng.integers(-5, 90, 600).astype(float),
            "city": rng.choice(["Oslo", "Bergen", "Tromsø", "Å"], 600),
        }
    )


def test_a_chain_fits_and_transforms_as_scikit_learn_does(session, frame):
    train, test = frame[:400], frame[400:]
    prep = hw.prep.Impute("x") | hw.prep.Standardize("x") | hw.prep.MinMax("y") | hw.prep.Ordinal("city")
    fitted = prep.fit(hw.from_pandas(train, partitions=5))
    got = fitted.transform(hw.from_pandas(test, partitions=3)).to_pandas(session)

    imputer = SimpleImputer().fit(train[["x"]])
    scaler = StandardScaler().fit(imputer.transform(train[["x"]]))
    expected = scaler.transform(imputer.transform(test[["x"]]))[:, 0]
    np.testing.assert_allclose(got["x"], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        got["y"], MinMaxScaler().fit(train[["y"]]).transform(test[["y"]])[:, 0], rtol=1e-12, atol=1e-14
    )
    codes = OrdinalEncoder().fit(train[["city"]]).transform(test[["city"]])[:, 0]
    assert got["city"].tolist() == codes.tolist()


def test_one_hot_vectors_are_scikit_learns(session, frame):
    data = hw.from_pandas(frame, partitions=6)
    got = hw.prep.OneHot("city").fit(data).transform(data).compute(session)
    expected = OneHotEncoder(sparse_output=False).fit_transform(frame[["city"]])
    assert np.array_equal(np.array(got["city"].to_pylist()), expected)


def test_a_saved_chain_loaded_elsewhere_gives_the_same_rows(session, frame, tmp_path: Path):
    data = hw.from_pandas(frame, partitions=4)
    fitted = (hw.prep.Impute("x") | hw.prep.Standardize("x", "y") | hw.prep.Ordinal("city")).fit(data)
    fitted.save(str(tmp_path / "prep.json"), session)
    loaded = hw.load_prep(str(tmp_path / "prep.json"))
    assert loaded.transform(data).compute(session).equals(fitted.transform(data).compute(session))


def test_an_unseen_category_follows_the_policy(session):
    train = hw.from_arrow({"c": ["a", "b"]}, partitions=2)
    new = hw.from_arrow({"c": ["b", "z", "a"]})
    lenient = hw.prep.Ordinal("c", unseen="null").fit(train).transform(new)
    assert lenient.compute(session).to_pydict() == {"c": [1, None, 0]}
    strict = hw.prep.Ordinal("c").fit(train).transform(new)
    with pytest.raises(HeadwaterError, match=r"'c'.*'z'"):
        strict.compute(session)


def test_what_isnt_used_isnt_read(frame):
    data = hw.from_pandas(frame, partitions=2)
    fitted = hw.prep.Standardize("y").fit(data)
    plan = fitted.transform(data).select("y").explain()
    assert "columns=[y]" in plan
    assert "columns=[id" not in plan.split("== Optimized plan ==")[1]


def test_fit_sees_only_its_own_side_of_a_split(session, frame):
    train, test = hw.from_pandas(frame, partitions=4).split(0.5, 0.5, by="id", seed=2)
    state = hw.prep.Standardize("y").fit(train).states(session)[0]
    ys = train.filter(col("y").is_not_null()).to_pandas(session)["y"]
    values = list(state.to_pylist()[0].values())
    assert any(value == pytest.approx(ys.mean(), rel=1e-12) for value in values)
    assert test.count(session) + len(ys) == len(frame)


def test_a_fitted_chain_that_isnt_there_is_told(tmp_path: Path):
    with pytest.raises(SourceNotFoundError, match=r"no .*gone\.json"):
        hw.load_prep(str(tmp_path / "gone.json"))
