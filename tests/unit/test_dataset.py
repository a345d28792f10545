"""The handle: results in every form, declared shapes, and outputs that share what they have in common."""

from __future__ import annotations

import datetime
import enum
import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import headwater as hw
from headwater import col
from headwater.errors import ParameterError, SchemaMismatchError, TypeMismatchError


@pytest.fixture(scope="module")
def session():
    with hw.Session("inline", workers=2, journal=False) as session:
        yield session


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    return pd.DataFrame(
        {
            "id": np.arange(1000),
            "key": rng.integers(0, 7, 1000).astype("int32"),
            "x": rng.normal(size=1000),
            "name": rng.choice(["ann", "bob", "cy"], 1000),
        }
    )


def test_every_form_of_result_holds_the_same_rows(session, frame):
    data = hw.from_pandas(frame, partitions=5)
    pd.testing.assert_frame_equal(data.to_pandas(session), frame, check_dtype=False)
    arrays = data.to_numpy(session)
    assert all(np.array_equal(arrays[name], frame[name].to_numpy()) for name in ("id", "key", "x"))
    assert data.count(session) == 1000
    assert data.head(3, session).to_pylist() == frame.head(3).to_dict("records")
    assert data.filter(col("key") == 3).head(4, session).num_rows == 4
    assert data.sort("x").head(2, session)["x"].to_pylist() == sorted(frame.x)[:2]


def test_batches_come_in_order_and_in_the_size_asked_for(session, frame):
    batches = list(hw.from_pandas(frame, partitions=7).iter_batches(300, session=session))
    assert [batch.num_rows for batch in batches] == [300, 300, 300, 100]
    assert pa.Table.from_batches(batches)["id"].to_pylist() == list(range(1000))


def noting(folder: Path):
    """A function that leaves a file for every batch it gets; it runs as a pickled copy, so no list will do."""

    def note(batch):
        if len(batch["id"]):
            (folder / uuid.uuid4().hex).touch()
        return batch

    return note


def test_a_stream_left_early_computes_only_what_it_needs(session, tmp_path: Path):
    data = hw.range(1000, partitions=100).map_batches(noting(tmp_path), schema={"id": pa.int64()})
    stream = data.iter_batches(session=session)
    assert next(stream).num_rows == 10
    stream.close()
    assert 1 <= len(list(tmp_path.iterdir())) < 50


def test_show_prints_a_table(session, capsys):
    hw.from_arrow({"a": [1, None], "b": ["x", "y"]}).show(session=session)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["a", "b"]
    assert any("null" in line or "None" in line for line in lines)


def test_arrays_of_two_dimensions_become_lists(session):
    data = hw.from_numpy({"v": np.arange(6.0).reshape(3, 2), "i": np.arange(3)})
    assert data.compute(session).to_pydict() == {"v": [[0, 1], [2, 3], [4, 5]], "i": [0, 1, 2]}


def test_aggregations_allow_arithmetic_around_and_inside(session, frame):
    got = (
        hw.from_pandas(frame, partitions=3)
        .group_by("key", initial=col("name").str.slice(0, 1))
        .agg(
            hw.count().alias("rows"),
            spread=col("x").max() - col("x").min(),
            weighted=(col("x") * col("id")).sum() / col("id").sum(),
            first=col("id").first(),
        )
        .sort("key", "initial")
        .to_pandas(session)
    )
    groups = frame.assign(initial=frame.name.str[:1], w=frame.x * frame.id).groupby(["key", "initial"])
    expected = groups.agg(
        rows=("id", "size"),
        low=("x", "min"),
        high=("x", "max"),
        w=("w", "sum"),
        i=("id", "sum"),
        first=("id", "min"),
    ).reset_index()
    assert got["rows"].tolist() == expected["rows"].tolist()
    assert got["first"].tolist() == expected["first"].tolist()
    np.testing.assert_allclose(got["spread"], expected.high - expected.low)
    np.testing.assert_allclose(got["weighted"], expected.w / expected.i)


def test_sorting_by_an_expression_keeps_the_columns(session, frame):
    data = hw.from_pandas(frame, partitions=3).sort(col("x").abs(), descending=True)
    assert data.columns == list(frame.columns)
    expected = frame.iloc[(-frame.x.abs()).argsort(kind="stable")].id.tolist()
    assert data.compute(session)["id"].to_pylist() == expected


def test_integer_keys_of_different_widths_join(session):
    left = hw.from_arrow(pa.table({"k": pa.array([1, 2, 3], pa.int8())}))
    right = hw.from_arrow(pa.table({"k": pa.array([2, 3, 4], pa.int64()), "v": ["b", "c", "d"]}))
    joined = left.join(right, on="k").compute(session)
    assert joined.schema.field("k").type == pa.int64()
    assert joined.to_pydict() == {"k": [2, 3], "v": ["b", "c"]}


def test_a_sample_is_the_same_on_every_run_and_about_as_large_as_asked(session):
    data = hw.range(20_000, partitions=6)
    first, again = (data.sample(0.1, seed=3).compute(session) for _ in range(2))
    assert first.equals(again)
    assert 1800 < first.num_rows < 2200
    assert not data.sample(0.1, seed=4).compute(session).equals(first)


def test_a_keyed_split_doesnt_depend_on_other_rows(session):
    few, many = (hw.range(n, partitions=3).split(0.5, 0.5, by="id", seed=1)[0] for n in (500, 1000))
    kept = many.filter(col("id") < 500).compute(session)["id"].to_pylist()
    assert few.compute(session)["id"].to_pylist() == kept


def test_outputs_of_one_run_compute_their_common_part_once(session, tmp_path: Path):
    common = (
        hw.range(300, partitions=3)
        .map_batches(noting(tmp_path), schema={"id": pa.int64()})
        .with_columns(m=col("id") % 3)
    )
    outputs = {"sums": common.group_by("m").agg(t=hw.sum("id")), "rows": common.agg(n=hw.count())}
    with session.run(outputs) as result:
        assert result.table("rows").to_pydict() == {"n": [300]}
        assert sorted(result.table("sums")["t"].to_pylist()) == [14850, 14950, 15050]
    assert len(list(tmp_path.iterdir())) == 3


def test_outputs_and_sinks_run_together_and_sinks_list_their_files(session, tmp_path: Path):
    data = hw.range(100, partitions=4).with_columns(half=col("id") % 2)
    outputs = {
        "total": data.agg(t=hw.sum("id")),
        "files": data.write_parquet(str(tmp_path / "out"), partition_by="half"),
    }
    with session.run(outputs) as result:
        files = result.table("files")
        assert result.table("total").to_pydict() == {"t": [4950]}
    assert sum(files["rows"].to_pylist()) == 100
    back = hw.read_parquet(str(tmp_path / "out"))
    assert back.columns == ["id", "half"]
    assert sorted(back.compute(session)["id"].to_pylist()) == list(range(100))
    with pytest.raises(ParameterError, match="end of a pipeline"):
        outputs["files"].filter(col("rows") > 0)


def test_a_single_file_holds_all_rows_in_order(session, tmp_path: Path):
    path = tmp_path / "top.csv"
    hw.range(50, partitions=5).sort("id", descending=True).write_csv(str(path)).run(session).close()
    assert pd.read_csv(path).id.tolist() == list(range(49, -1, -1))


def test_unions_need_equal_columns_and_say_which_differ():
    with pytest.raises(SchemaMismatchError, match=r"column 'a' is string, not int64"):
        hw.from_arrow({"a": [1]}).union(hw.from_arrow({"a": ["x"]}))


def test_filling_nulls_by_kind_and_by_column(session):
    data = hw.from_arrow(
        {"i": [1, None], "f": [None, 2.0], "s": [None, "x"], "d": [datetime.date(2020, 1, 1), None]}
    )
    assert data.fill_null(0).compute(session).to_pydict()["i"] == [1, 0]
    assert data.fill_null(0).compute(session).to_pydict()["f"] == [0.0, 2.0]
    assert data.fill_null({"s": "?"}).compute(session).to_pydict()["s"] == ["?", "x"]
    with pytest.raises(ParameterError, match="no column takes"):
        data.select("s").fill_null(1.5)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda d: d.split(0.9, 0.2), "sum to at most 1"),
        (lambda d: d.sort(), "needs a key"),
        (lambda d: d.sort("a", "b", descending=[True]), "one for each of 2 keys"),
        (lambda d: d.join(d), "takes either on"),
        (lambda d: d.limit(-1), "0 or more"),
        (lambda d: d.sample(1.5), "between 0 and 1"),
        (lambda d: d.repartition(), "give a count"),
        (lambda d: d.select(hw.lit(1)), "has no name"),
        (lambda d: d.agg(x=col("a")), "no aggregation"),
        (lambda d: d.select("a", "a"), "more than once"),
        (lambda d: d.join(d, on="a", how="outer"), "'inner'"),
        (lambda d: d.sample("0.5"), "a fraction is a number"),
        (lambda d: d.split([0.8, 0.2]), r"Unpack a list with \*"),
        (lambda d: d.sort("a", descending="yes"), "True or False"),
        (lambda d: d.map_batches(lambda b: b, batch_rows=0), r"batch_rows=0.*1 or more"),
        (lambda d: d.map_batches(lambda b: b, schema={"a": "integer"}), "Did you mean 'int'"),
        (lambda d: d.iter_batches(0), r"batch_rows=0.*1 or more"),  # and doesn't yield for ever
        (
            lambda d: d.write_parquet("out", compresion="zstd"),
            "no option 'compresion'. Did you mean 'compression'",
        ),
        (lambda d: d.write_parquet("out", mode="overwrite"), "no option 'mode'.*'if_exists'"),
        (lambda d: hw.read_csv("out", sep=";"), "no option 'sep'.*'delimiter'"),
        (lambda d: hw.from_arrow({"a": [1], "b": [1, 2]}), "different lengths"),
        (lambda d: d.select(col("a").cast("string").str.split(1)), r"separator=1.*a text, not int"),
        (lambda d: d.select(col("a").round("two")), r"decimals='two'.*whole number"),
    ],
)
def test_wrong_arguments_say_what_to_write(use, message):
    with pytest.raises(ParameterError, match=message):
        use(hw.from_arrow({"a": [1], "b": [2]}))


def test_a_pipeline_converts_texts_by_annotation_and_names_near_misses():
    @hw.pipeline
    def demo(
        rows: int, rate: float = 0.5, day: datetime.date = datetime.date(2020, 1, 1), names: list[str] = ()
    ):
        assert (rows, rate, day, names) == (3, 0.25, datetime.date(2021, 2, 3), ["a", "b"])
        return hw.range(rows)

    bound = demo.bind(rows="3", rate="0.25", day="2021-02-03", names="a,b")
    assert list(bound) == ["result"]
    with pytest.raises(ParameterError, match=r"no parameter 'row'.*'rows'"):
        demo.bind(row=3)
    with pytest.raises(ParameterError, match="needs a value for rows"):
        demo.bind()
    with pytest.raises(ParameterError, match=r"rows='many'.*int"):
        demo.bind(rows="many")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda d: d.drop(["a"]), r"Unpack a list with \*"),
        (lambda d: d.drop(col("a")), "Write 'a'"),
        (lambda d: d.distinct(["a"]), r"Unpack a list with \*"),
        (lambda d: d.sort(["a", "b"]), r"Unpack a list with \*"),
        (lambda d: d.join(d, on=col("a")), "Write 'a'"),
        (lambda d: d.rename(a=1), "takes column names"),
        (lambda d: d["a"], r"Write col\('name'\)"),
        (lambda d: d.compute("inline"), r"hw\.Session\('inline'\)"),
        (lambda d: d.map_batches(lambda b: b, schema=["a"]), "give an Arrow schema or a dict"),
        (lambda d: hw.Session("inline").run(d), "dict of name to dataset"),
        (lambda d: hw.Session("inline").run({"a": 1}), "output 'a' is int"),
        (lambda d: hw.from_arrow({"a": [1, "b"]}), "column 'a'.*'b'"),
        (lambda d: hw.from_pandas({"a": [1]}), "takes a DataFrame, not dict"),
        (lambda d: hw.from_numpy(np.zeros(3)), "dict of column name to array"),
        (lambda d: hw.prep.Standardize("a").fit(pd.DataFrame()), "takes a Dataset, not DataFrame"),
        (lambda d: hw.prep.Standardize("a").fit(d).transform("a"), "takes a Dataset, not str"),
        (lambda d: col("a").alias(1), "name is a text"),
    ],
)
def test_arguments_of_the_wrong_type_say_what_to_write(use, message):
    with pytest.raises(TypeMismatchError, match=message):
        use(hw.from_arrow({"a": [1], "b": [2]}))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda d: d.a, r"written col\('a'\)"),
        (lambda d: d.collect(), r"compute\(\)"),
        (lambda d: d.groupBy("a"), "Did you mean 'group_by'"),
        (lambda d: d.group_by("a").sum(), r"agg\(col\('x'\)\.sum\(\)"),
        (lambda d: d.group_by("a").compute(), r"agg\(\.\.\.\) first"),
    ],
)
def test_an_unknown_method_names_the_one_that_was_meant(use, message):
    with pytest.raises(AttributeError, match=message):
        use(hw.from_arrow({"a": [1], "b": [2]}))


def test_numbers_of_numpy_are_numbers(session):
    data = hw.range(10, partitions=2)
    assert data.limit(np.int64(3)).count(session) == 3
    assert data.head(np.int32(2), session).num_rows == 2
    assert data.sort("id", descending=np.True_).head(1, session)["id"].to_pylist() == [9]


def test_a_column_more_or_less_draws_the_same_rows(session, frame):
    data = hw.from_pandas(frame, partitions=4)
    wider = data.with_columns(double=col("x") * 2).rename(name="who")

    def drawn(dataset: hw.Dataset) -> list[int]:
        return dataset.select("id").compute(session)["id"].to_pylist()

    assert drawn(data.sample(0.3, seed=1)) == drawn(wider.sample(0.3, seed=1))
    assert [drawn(d) for d in data.split(0.7, 0.3)] == [drawn(d) for d in wider.drop("x").split(0.7, 0.3)]
    twice = data.sample(0.5).with_columns(one=hw.lit(1)).sample(0.5)
    assert 150 < twice.count(session) < 350  # the second draw isn't the first one again


def test_wide_datasets_are_shown_shortened():
    wide = hw.from_arrow({f"c{i}": [i] for i in range(500)})
    computed = wide.with_columns(total=col("c1") + col("c2"))
    assert "total=col('c1') + col('c2'), and 500 columns as they are" in repr(computed)
    for text in (repr(wide.select(*wide.columns)), repr(wide.agg(**{n: col(n).sum() for n in wide.columns}))):
        assert "… 480 more" in text
        assert len(text) < 3000


def test_a_session_that_is_never_closed_leaves_no_scratch(tmp_path: Path):
    program = "import headwater as hw; assert hw.range(9).count(hw.Session('inline')) == 9"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_takes_members_of_an_enum_by_name():
    class Grain(enum.Enum):
        DAY = "d"
        HOUR = "h"

    def declare(grain=Grain.DAY):
        assert grain is Grain.HOUR
        return hw.range(1)

    assert list(hw.pipeline(declare).bind(grain="HOUR")) == ["result"]
    with pytest.raises(ParameterError, match="Did you mean 'DAY'"):
        hw.pipeline(declare).bind(grain="day")


def test_a_pipeline_may_be_marked_with_parentheses():
    @hw.pipeline()
    def marked(rows: int = 2):
        return hw.range(rows)

    assert list(marked.bind()) == ["result"]
