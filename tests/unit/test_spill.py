"""What spills may have columns of any name, and such that are encoded by dictionaries, another one in each table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.distinct import DistinctKernel
from headwater.ops.join import JoinKernel
from headwater.ops.kernel import Context
from headwater.ops.ordering import SortKey
from headwater.ops.sort import SortKernel
from headwater.ops.spill import SpillFile

CODES = pa.dictionary(pa.int16(), pa.string())


def tables() -> list[pa.Table]:
    rng = np.random.default_rng(5)
    made = []
    for part, words in enumerate((["a", "b"], ["c"], ["b", "a", "ä", None])):
        encoded = (
            pa.array(rng.choice(np.array(words, object), 1000), pa.string()).dictionary_encode().cast(CODES)
        )
        made.append(pa.table({"x": rng.permutation(1000) + 500 * part, "word": encoded}))
    return made


def kernels() -> list[tuple[object, int]]:
    schema = tables()[0].schema
    joined = pa.schema([*schema, pa.field("other", CODES)])
    return [
        (SortKernel((SortKey("x"),)), 1),
        (DistinctKernel(("x",)), 1),
        (JoinKernel(("x",), ("x",), "left", (("word", "other"),), joined), 2),
    ]


@pytest.mark.parametrize("place", range(3))
def test_rows_are_those_of_memory(place, tmp_path):
    kernel, inputs = kernels()[place]
    results = []
    for context in (Context(), Context(memory_bytes=8000, spill_root=tmp_path)):
        found = pa.concat_tables(kernel.run([iter(tables()) for _ in range(inputs)], context))
        assert found.schema.field("word").type == CODES
        results.append(found.to_pydict())
    assert context.metrics["spilled_bytes"]
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["__row__", "row", "__place__"])
def test_columns_may_have_any_name(name, tmp_path):
    rows = [table.rename_columns([name, "word"]) for table in tables()]
    schema = pa.schema([*rows[0].schema, pa.field("other", CODES)])
    kernel = JoinKernel((name,), (name,), "inner", (("word", "other"),), schema)
    results = []
    for context in (Context(), Context(memory_bytes=8000, spill_root=tmp_path)):
        results.append(pa.concat_tables(kernel.run([iter(rows), iter(rows)], context)).to_pydict())
    assert context.metrics["spilled_bytes"]
    assert results[0] == results[1]


def test_parts_of_a_file(tmp_path):
    whole = pa.concat_tables(tables())
    file = SpillFile(tmp_path / "rows.arrow", whole.schema, Context())
    for table in tables():
        file.append(table)
    file.finish()
    assert file.table().to_pydict() == whole.to_pydict()
    assert file.slice(900, 2100).to_pydict() == whole.slice(900, 1200).to_pydict()
    assert pa.concat_tables(file.read(["word"])).equals(pa.concat_tables(file.read()).select(["word"]))
    empty = SpillFile(tmp_path / "none.arrow", whole.schema, Context()).finish()
    assert [table.schema for table in empty.read()] == [whole.schema]
