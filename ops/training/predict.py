"""Predict: the step that appends a model's predictions to rows; the model is the state of a `Transform`.

A matrix product may round a row otherwise when there are more or fewer rows, or another number of threads. So rows are
computed in blocks of one fixed size, the last one filled up, by one BLAS thread: then a row's prediction depends on the
row and the model alone, however the rows are cut, and is the same for one row in a service as for millions in a run.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import HeadwaterError, ParameterError, UserFunctionError, did_you_mean
from ..backend import Array, array_namespace
from ..batches import as_numpy, to_column
from ..device.crossing import staged
from ..morsels import contiguous
from ..objectives.objective import Objective
from ..schema import canonical_schema
from ..user_functions import own_traceback, sample_row
from .feature_values import is_vector
from .features import Features
from .model_table import decode_model

#: rows that are predicted at once; another number may give other last bits
BLOCK_ROWS = 1024
#: the same on a device, which is idle with fewer
DEVICE_ROWS = 1 << 15
NULLS = ("error", "null")


@dataclass(frozen=True)
class Prepared:
    """A model as prediction wants it; made once a process.

    Attributes:
        params: the parameters, in the namespace of this process.
        widths: how long the vectors of vector columns are, where it is known.
    """

    params: Any
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Predict:
    """Append what an objective predicts from rows; all columns stay.

    It is the step of ``Transform(rows, model, Predict(…))``, where ``model`` gives a table of `MODEL_SCHEMA`.

    Attributes:
        objective: what the model was trained for.
        features: which columns it reads; without target and weight.
        names: predicted column to the name it shall have; others keep theirs.
        nulls: what rows become whose features are null (or NaN, where the features don't take NaN): "error", or
            "null" to give them null predictions.
        batch_rows: rows computed at once.

    Raises:
        ParameterError: an unknown policy, or a name for a column that isn't predicted.
    """

    objective: Objective
    features: Features
    names: tuple[tuple[str, str], ...] = ()
    nulls: Literal["error", "null"] = "error"
    batch_rows: int = BLOCK_ROWS
    #: the columns it reads
    columns: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", self.features.required)
        if self.nulls not in NULLS:
            raise ParameterError(f"predict(nulls={self.nulls!r}): {did_you_mean(str(self.nulls), NULLS)}")
        predicted = [f.name for f in self.objective.output(None)]
        for name, _ in self.names:
            if name not in predicted:
                raise ParameterError(
                    f"predict(names={dict(self.names)!r}): the model predicts no {name!r}. "
                    f"{did_you_mean(name, predicted)}"
                )

    # -- the TransformStep protocol --------------------------------------------------------------------

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema after the step, or raise what is wrong with its columns."""
        self.features.check(schema, "predict")
        added = self.fields()
        for out in added:
            if out.name in schema.names or [f.name for f in added].count(out.name) > 1:
                raise ParameterError(
                    f"predict: the output would have the column {out.name!r} twice. Give the prediction another name, "
                    f"as predict(model, names={{{out.name!r}: 'predicted'}}), or drop or rename the column first."
                )
        return pa.schema([*schema, *added])

    def prepare(self, state: pa.Table) -> Prepared:
        """Decode the model; once a process."""
        fitted = decode_model(state)
        return Prepared(_on_device(fitted.params), dict(fitted.about.get("widths") or {}))

    def apply(self, table: pa.Table, prepared: Prepared) -> pa.Table:
        """Append the predicted columns to a table."""
        schema, missing = self.output_schema(table.schema), self._missing(table)
        rows = table
        if missing is not None:
            if self.nulls == "error":
                raise self._refusal(table, missing)
            rows = table.filter(pa.array(~missing))
        predicted = self._predict(rows, prepared)
        columns = []
        for own, out in zip(self.objective.output(None), self.fields()):
            column = self._column(predicted[own.name], own.name, out.type)
            columns.append(column if missing is None else column.take(_places(missing)))
        return pa.Table.from_arrays([*table.columns, *columns], schema=schema)

    def parameters(self) -> Any:
        kind = type(self.objective)
        return (
            f"{kind.__module__}.{kind.__qualname__}",
            self.objective.parameters(),
            self.features.parameters(),
            self.names,
            self.nulls,
            self.batch_rows,
        )

    def describe(self) -> str:
        return f"{self.objective.label} -> {', '.join(f.name for f in self.fields())}"

    # -- insides --------------------------------------------------------------------------------------

    def fields(self) -> list[pa.Field]:
        """The fields that are added, as they are named in the end."""
        names = dict(self.names)
        given = canonical_schema(pa.schema(self.objective.output(None)))
        return [pa.field(names.get(f.name, f.name), f.type) for f in given]

    def _missing(self, table: pa.Table) -> np.ndarray | None:
        """Which rows lack a feature, shape (rows,), bool; None if none does."""
        found = None
        for name in self.columns:
            column = contiguous(table.column(name))
            mask = _lacks(column, self.features.allow_nan)
            if mask is not None:
                found = mask if found is None else found | mask
        return found

    def _refusal(self, table: pa.Table, missing: np.ndarray) -> HeadwaterError:
        row = table.slice(int(np.flatnonzero(missing)[0]), 1)
        lacking = [
            name
            for name in self.columns
            if _lacks(contiguous(row.column(name)), self.features.allow_nan) is not None
        ]
        return HeadwaterError(
            f"predict: {int(missing.sum())} of {len(missing)} rows in a batch lack a feature (null or NaN), the first "
            f"of them {', '.join(map(repr, lacking))}. Fill it, as with hw.prep.Impute({lacking[0]!r}); leave such "
            "rows out with drop_nulls(...); or write predict(model, nulls='null') to give them null predictions."
        )

    def _predict(self, rows: pa.Table, prepared: Prepared) -> dict[str, np.ndarray]:
        """Compute the predictions of rows that lack nothing, in blocks of one size."""
        xp, count = array_namespace(), rows.num_rows
        size = self.batch_rows if xp is np else max(self.batch_rows, DEVICE_ROWS)
        names = [f.name for f in self.objective.output(None)]
        if not count:
            return {name: np.zeros(0) for name in names}
        arrays = self.features.to_arrays(rows, prepared.widths)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        with _one_thread():
            for start in range(0, count, size):
                block = {
                    name: _block(array[start : start + size], size, xp) for name, array in arrays.items()
                }
                given = self._call(prepared.params, block, rows.slice(start, 1))
                for name in names:
                    parts[name].append(self._checked(given, name, size)[: count - start])
        return {name: np.concatenate(blocks) for name, blocks in parts.items()}

    def _call(self, params: Any, block: dict[str, Any], row: pa.Table) -> Mapping[str, Any]:
        try:
            return self.objective.predict(params, block)
        except HeadwaterError:
            raise
        except Exception as error:
            what = f"{self.objective.label}.predict raised {type(error).__name__}: {error}"
            shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in block.items())
            raise UserFunctionError(
                f"{what}\nin a batch of {shapes}; its first row: {sample_row(row)}\n{own_traceback(error)}"
            ) from error

    def _column(self, values: np.ndarray, name: str, type: pa.DataType) -> pa.Array:
        if not len(values):
            return pa.array([], type)
        try:
            return to_column(values, type)
        except (TypeError, pa.ArrowException) as error:
            raise UserFunctionError(
                f"{self.objective.label}.predict returned {name!r} as {values.dtype} of the shape {values.shape}, and "
                f"its output() says {type} ({error}). Make them agree."
            ) from error

    def _checked(self, given: Mapping[str, Any], name: str, rows: int) -> np.ndarray:
        known = given if isinstance(given, Mapping) else {}
        if name not in known:
            returned = sorted(known) if isinstance(given, Mapping) else type(given).__name__
            raise UserFunctionError(
                f"{self.objective.label}.predict returned {returned}, and its output() says there is {name!r}. "
                "Return a dict with an array for each field of output()."
            )
        array = as_numpy(known[name])
        if not array.ndim or len(array) != rows:
            raise UserFunctionError(
                f"{self.objective.label}.predict returned {name!r} of the shape {array.shape} for {rows} "
                "rows. Return one value, or one vector, for each row."
            )
        return array


def _block(rows: np.ndarray, size: int, xp: ModuleType) -> Array:
    """Bring rows to where they are computed; behind the last row that row again, until there are enough."""
    there = staged(xp, rows)
    if len(rows) == size:
        return there
    block = xp.empty((size, *rows.shape[1:]), rows.dtype)
    block[: len(rows)] = there
    block[len(rows) :] = there[-1:]
    return block


def _lacks(column: pa.Array, allow_nan: bool) -> np.ndarray | None:
    """Which values are null, or NaN unless that is allowed, or vectors with such an item; None if none is."""
    mask = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if is_vector(column.type):
        items = column.flatten()
        inside = _lacks(items, allow_nan)
        if inside is None:
            return mask
        owners = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        mask = np.zeros(len(column), bool) if mask is None else np.array(mask)
        mask[owners[inside]] = True
        return mask
    if pa.types.is_floating(column.type) and not allow_nan:
        values = column.to_numpy(zero_copy_only=False)  # NaN for null
        holes = np.isnan(values)
        return holes if holes.any() else mask
    return mask


def _places(missing: np.ndarray) -> pa.Array:
    """For each row its place among those that lack nothing; null for the others."""
    return pa.array(np.cumsum(~missing) - 1, mask=missing)


def _on_device(tree: Any) -> Any:
    xp = array_namespace()
    if xp is np:
        return tree
    if isinstance(tree, dict):
        return {key: _on_device(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_on_device, tree))
    return staged(xp, tree) if isinstance(tree, np.ndarray) else tree


@functools.cache
def _thread_pools(torch: bool) -> Any:
    """The libraries of this process that compute by threads; looking for them takes longer than limiting them."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def _one_thread() -> AbstractContextManager[Any]:
    pools = _thread_pools("torch" in sys.modules)
    return nullcontext() if pools is None else pools.limit(limits=1)
