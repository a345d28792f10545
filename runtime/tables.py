"""Tables as text: how a small Arrow table stands in the journal."""

from __future__ import annotations

import base64

import pyarrow as pa


def table_text(table: pa.Table) -> str:
    """Write a table as base64 of an Arrow stream; `parse_table` reads it back.

    Example:
        >>> parse_table(table_text(pa.table({"x": [1]}))).to_pylist()
        [{'x': 1}]
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def parse_table(text: str) -> pa.Table:
    """Read what `table_text` wrote."""
    return pa.ipc.open_stream(base64.b64decode(text)).read_all()
