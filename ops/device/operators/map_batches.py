"""Map batches on a device: the user function gets and gives arrays there, and nothing crosses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ....errors import UserFunctionError, did_you_mean
from ...backend import Array, array_namespace
from ...kernel import MORSEL_ROWS, Broadcast, Context
from ...map_batches import MapBatchesKernel
from ...user_functions import call, sample_row
from ..column import DeviceColumn
from ..device_kernel import DeviceKernel, DeviceStream, Lowered, lowers
from ..streams import rechunk
from ..table import DeviceTable, to_arrow


@dataclass(frozen=True)
class DeviceMapBatches(DeviceKernel):
    """Calls a user function on batches cut as on the host; in float columns null is NaN, in others there is none.

    Attributes:
        kernel: the host's.
    """

    kernel: MapBatchesKernel

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp, kernel = array_namespace(), self.kernel
        label = f"map_batches({kernel.name})"
        for table in rechunk(inputs[0], kernel.batch_rows or MORSEL_ROWS, xp):
            result = call(kernel.function, _arrays(table, xp), label, to_arrow(table.slice(0, 1)), context)
            made = _table(result, kernel, table.rows, xp)
            if isinstance(made, str):
                first = sample_row(to_arrow(table.slice(0, 1)))
                raise UserFunctionError(
                    f"{label} {made}\nin partition {context.partition}; the batch's first row: {first}"
                )
            yield made

    @property
    def label(self) -> str:
        return self.kernel.label


@lowers(MapBatchesKernel)
def lower(kernel: MapBatchesKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Lower what asks for arrays of the device, over numbers and to numbers."""
    if kernel.format != "device":
        return f"map {kernel.name} takes {kernel.format}; format='device' gives it arrays of the GPU"
    for field in (*schemas[0], *kernel.output):
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            return f"map {kernel.name}: {field.name!r} is {field.type}, and arrays of a GPU hold numbers"
    return DeviceMapBatches(kernel)


def _arrays(table: DeviceTable, xp: ModuleType) -> dict[str, Array]:
    arrays = {}
    for name, column in zip(table.schema.names, table.columns):
        values = column.values
        if column.valid is not None:
            floating = values if values.dtype.kind == "f" else values.astype(np.float64)
            values = xp.where(column.valid, floating, floating.dtype.type(np.nan))
        arrays[name] = values.copy()  # the function may write to it
    return arrays


def _table(result: Any, kernel: MapBatchesKernel, rows: int, xp: ModuleType) -> DeviceTable | str:
    """Bring a result to the declared schema, or say what doesn't fit, to follow the function's name."""
    if not isinstance(result, Mapping):
        return f"returned a {type(result).__name__}, not a dict of arrays. Return {{'column': array}}."
    names = kernel.output.names
    for name in names:
        if name not in result:
            return f"returned no column {name!r}. {did_you_mean(name, map(str, result))}"
    for name in result:
        if name not in names:
            return f"returned the column {name!r}, which isn't declared. {did_you_mean(str(name), names)}"
    columns = []
    for field in kernel.output:
        array = xp.asarray(result[field.name])
        if array.ndim != 1 or array.dtype.kind not in "iufb":
            return f"returned {array.dtype} of shape {array.shape} in {field.name!r}, where {field.type} is declared."
        columns.append(_column(array, field.type, xp))
    lengths = {name: len(column) for name, column in zip(names, columns)}
    if len(set(lengths.values())) > 1:
        return f"returned columns of different lengths: {lengths}."
    count = next(iter(lengths.values()), 0)
    if kernel.same_length and count != rows:
        return (
            f"returned {count} rows for {rows}, and was declared to keep their number. Return one for each."
        )
    return DeviceTable(tuple(columns), kernel.output, count)


def _column(array: Array, type: pa.DataType, xp: ModuleType) -> DeviceColumn:
    """NaN stays NaN in a float column, and is null in any other."""
    valid = None
    if array.dtype.kind == "f" and not pa.types.is_floating(type):
        missing = xp.isnan(array)
        if bool(missing.any()):
            valid = ~missing
            array = xp.where(valid, array, array.dtype.type(0))
    return DeviceColumn(type, array.astype(type.to_pandas_dtype()), valid)
