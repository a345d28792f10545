"""Canonical Arrow types: one layout for each logical type, so that equal rows have equal bytes.

Dictionaries are decoded, large and view types become the plain ones. A partition stays far below the
2 GiB at which 32-bit offsets end.
"""

from __future__ import annotations

import pyarrow as pa


def canonical_type(type: pa.DataType) -> pa.DataType:
    """Return the type Headwater uses for an Arrow type.

    Args:
        type: any Arrow type.

    Returns:
        The canonical type, nested types included.

    Example:
        >>> canonical_type(pa.dictionary(pa.int8(), pa.large_string()))
        DataType(string)
    """
    if pa.types.is_dictionary(type):
        return canonical_type(type.value_type)
    if pa.types.is_run_end_encoded(type):
        return canonical_type(type.value_type)
    if pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return pa.string()
    if pa.types.is_large_binary(type) or pa.types.is_binary_view(type):
        return pa.binary()
    if isinstance(type, pa.BaseExtensionType):
        return canonical_type(type.storage_type)
    if pa.types.is_fixed_size_list(type):
        return pa.list_(canonical_type(type.value_type), type.list_size)
    if (
        pa.types.is_list(type)
        or pa.types.is_large_list(type)
        or pa.types.is_list_view(type)
        or pa.types.is_large_list_view(type)
    ):
        return pa.list_(canonical_type(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([pa.field(f.name, canonical_type(f.type)) for f in type])
    if pa.types.is_map(type):
        return pa.map_(canonical_type(type.key_type), canonical_type(type.item_type))
    return type


def canonical_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema of canonical types, all fields nullable, without metadata."""
    return pa.schema([pa.field(f.name, canonical_type(f.type)) for f in schema])


def canonical_table(table: pa.Table, schema: pa.Schema | None = None) -> pa.Table:
    """Cast a table to its canonical schema, or to a given one with the same column names.

    Args:
        table: any table.
        schema: the schema to reach; None derives it from the table's.

    Returns:
        A table with exactly that schema; no copy where nothing changes.
    """
    target = canonical_schema(table.schema) if schema is None else schema
    if table.schema.equals(target, check_metadata=True):
        return table
    columns = [_cast(table.column(i), target.field(i).type) for i in range(len(target))]
    return pa.Table.from_arrays(columns, schema=target)


def _cast(column: pa.ChunkedArray, type: pa.DataType) -> pa.ChunkedArray:
    if column.type == type:
        return column
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([c.storage for c in column.chunks], type=column.type.storage_type)
    if pa.types.is_run_end_encoded(column.type):
        import pyarrow.compute as pc

        column = pc.run_end_decode(column)
    return column.cast(type)
