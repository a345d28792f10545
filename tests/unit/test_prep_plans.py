"""The plans of fits: what is shared, what depends on what, and that running them gives the fit."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headwater.errors import ColumnNotFoundError, TypeMismatchError
from headwater.ops.aggregate import Aggregate
from headwater.ops.expressions.expr import evaluate_column
from headwater.ops.map_batches import MapBatches
from headwater.ops.prep import Bucketize, Chain, Impute, MinMax, OneHot, Ordinal, Standardize
from headwater.ops.project import Project
from headwater.ops.scan import Scan
from headwater.ops.source import Source, Split
from headwater.ops.transform import Transform


class Rows(Source):
    """A table to scan."""

    kind = "rows"

    def __init__(self, table):
        self.table = table

    @property
    def schema(self):
        return self.table.schema

    def identity(self):
        return self.table

    def splits(self):
        return (Split(0, len(self.table), self.table.nbytes),)

    def read(self, split, columns, predicate=None, limit=None):
        yield self.table.select(list(columns))


def evaluate(node):
    """Run the operators that fits are made of; aggregations by Arrow's and NumPy's own."""
    inputs = [evaluate(child) for child in node.inputs]
    match node:
        case Scan():
            return pa.concat_tables(node.source.read(node.source.splits()[0], node.schema.names))
        case Project():
            columns = [evaluate_column(expr, inputs[0]) for _, expr in node.exprs]
            return pa.Table.from_arrays(columns, schema=node.schema)
        case MapBatches():
            half = len(inputs[0]) // 2
            return pa.concat_tables([node.function(inputs[0][:half]), node.function(inputs[0][half:])])
        case Aggregate():
            return aggregate(node, inputs[0])
        case Transform():
            return node.step.apply(inputs[0], node.step.prepare(inputs[1]))
    raise AssertionError(node)


def aggregate(node, table):
    if node.keys:
        result = table.group_by(list(node.keys)).aggregate([("count", "sum")])
        return result.rename_columns([*node.keys, "count"]).cast(node.schema)
    row = {}
    for a in node.aggregations:
        values = table[a.column].drop_null().to_numpy()
        functions = {"count": len, "mean": np.mean, "var": np.var, "min": np.min, "max": np.max}
        row[a.name] = functions[a.function](values) if len(values) or a.function == "count" else None
    return pa.Table.from_pylist([row], schema=node.schema)


TABLE = pa.table(
    {
        "x": [1.0, None, 4.0, float("nan"), -2.0, 4.0],
        "n": pa.array([1, 2, None, 2, 9, 2], pa.int32()),
        "s": ["b", None, "a", "b", "c", "a"],
        "f": [True, False, True, None, True, True],
    }
)
ROWS = Scan(Rows(TABLE))


def fitted(chain):
    return chain.fit_nodes(ROWS)


def aggregates(chain):
    nodes = {node.key: node for state in fitted(chain).states for node in state.walk()}
    return [node for node in nodes.values() if isinstance(node, Aggregate)]


def test_independent_steps_share_one_pass():
    chain = Standardize("x") | Bucketize("n", bins=3)
    (shared,) = aggregates(chain)
    assert [a.name for a in shared.aggregations] == [
        "count(x)",
        "mean(x)",
        "var(x, ddof=0)",
        "min(n)",
        "max(n)",
    ]


def test_all_value_counts_share_one_pass():
    chain = OneHot("s") | Impute("f", strategy="most_frequent") | Ordinal("n") | MinMax("x")
    assert len(aggregates(chain)) == 2


def test_a_step_is_fitted_on_what_the_steps_before_it_left():
    chain = Impute("x") | Standardize("x") | MinMax("n")
    assert len(aggregates(chain)) == 2  # mean(x), min(n), max(n) together; then x once more
    result = evaluate(fitted(chain).transform_node(ROWS))
    x = np.array([np.nan if v is None else v for v in TABLE["x"].to_pylist()])[:, None]
    expected = make_pipeline(SimpleImputer(), StandardScaler()).fit_transform(x)[:, 0]
    np.testing.assert_allclose(result["x"].to_numpy(), expected)


def test_steps_may_use_the_columns_that_steps_before_them_made():
    onehot = OneHot("s", categories={"s": ["a", "b", "c"]}, nulls="ignore", dtype="float64")
    chain = Impute("n", indicator=True) | onehot | MinMax("s=a", "n_missing", range=(0, 2))
    result = evaluate(fitted(chain).transform_node(ROWS))
    assert result["s=a"].to_pylist() == [0, 0, 2, 0, 0, 2]
    assert result["n_missing"].to_pylist() == [0, 0, 2, 0, 0, 0]


@pytest.mark.parametrize(
    "chain",
    [
        Impute("x") | Standardize("x", "n") | OneHot("s", "f", nulls="category") | MinMax("n"),
        Impute("s", "f", strategy="most_frequent") | Ordinal("s", "f") | Standardize("s"),
        Bucketize("x", boundaries=[0]) | OneHot("x", nulls="ignore"),
        Impute("n", strategy="constant", fill_value=0) | Impute("x", indicator=True) | Standardize("n", "x"),
    ],
    ids=str,
)
def test_the_shared_plan_gives_what_fitting_step_by_step_gives(chain):
    together = evaluate(fitted(chain).transform_node(ROWS))
    rows = ROWS
    for step in chain.steps:
        rows = Scan(Rows(evaluate(Chain((step,)).fit_nodes(rows).transform_node(rows))))
    expected = rows.source.table
    assert together.schema == expected.schema
    assert repr(together.to_pydict()) == repr(expected.to_pydict())


def test_transform_takes_other_rows():
    other = pa.table({"x": [10.0], "extra": ["kept"]})
    result = evaluate(fitted(MinMax("x")).transform_node(Scan(Rows(other))))
    assert result.to_pydict() == {"x": [2.0], "extra": ["kept"]}


def test_keys_tell_options_and_rows_apart():
    keys = {
        fitted(chain).transform_node(ROWS).key
        for chain in (
            MinMax("x"),
            MinMax("n"),
            MinMax("x", clip=True),
            Standardize("x"),
            MinMax("x") | MinMax("n"),
        )
    }
    assert len(keys) == 5
    assert fitted(MinMax("x")).transform_node(ROWS).key in keys


def test_errors_come_at_declaration():
    with pytest.raises(ColumnNotFoundError, match="no column 'y'"):
        fitted(MinMax("x") | MinMax("y"))
    with pytest.raises(TypeMismatchError, match=r"Standardize\('s'\)"):
        fitted(OneHot("s") | Standardize("s"))
    with pytest.raises(TypeMismatchError, match="a chain is made of steps"):
        MinMax("x") | "y"


def test_chains_are_written_as_a_user_would():
    chain = Standardize("x", "n", ddof=1) | (OneHot("s", unseen="ignore") | MinMax("x"))
    assert str(chain) == "Standardize('x', 'n', ddof=1) | OneHot('s', unseen='ignore') | MinMax('x')"
    assert "MinMax('x')" in repr(fitted(MinMax("x")).transform_node(ROWS))
