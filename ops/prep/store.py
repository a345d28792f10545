"""Fitted chains as text: versioned JSON that a person can read, and `load_text` reads back exactly."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import CorruptFileError, ParameterError, SerializationError
from .bucketize import Bucketize
from .encode import OneHot, Ordinal
from .fit import state_schema
from .impute import Impute
from .scale import MinMax, RobustScale, Standardize
from .step import Step

FORMAT, VERSION = "headwater.prep", 1
_STEPS: dict[str, type[Step]] = {
    step.__name__: step for step in (Standardize, MinMax, RobustScale, Impute, OneHot, Ordinal, Bucketize)
}
#: values that JSON has no form for, by the name they are tagged with
_TAGGED: dict[str, tuple[type, Any, Any]] = {
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "float": (float, repr, float),
}


def dump(steps: Sequence[Step], states: Sequence[pa.Table]) -> str:
    """Write a fitted chain as JSON.

    Args:
        steps: the steps, in order.
        states: the computed state of each.

    Returns:
        The text: for each step its name, columns, options and state.

    Raises:
        SerializationError: an option that JSON can't hold, as a fill value that is an object.
    """
    records = [
        {
            "step": step.name,
            "columns": list(step.columns),
            "options": {name: _encode(value, f"{step}, {name}") for name, value in step.options.items()},
            "state": [
                {name: _encode(value, str(step)) for name, value in row.items()}
                for row in _own(step, state).to_pylist()
            ],
        }
        for step, state in zip(steps, states)
    ]
    return (
        json.dumps({"format": FORMAT, "version": VERSION, "steps": records}, indent=1, allow_nan=False) + "\n"
    )


def load_text(text: str) -> tuple[tuple[Step, ...], tuple[pa.Table, ...]]:
    """Read what `dump` wrote.

    Args:
        text: the JSON.

    Returns:
        The steps, and the state of each.

    Raises:
        CorruptFileError: it isn't a fitted chain, or one of a later version.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        if document["version"] != VERSION:
            raise ValueError(
                f"its version is {document['version']!r}, and this Headwater reads version {VERSION}"
            )
        loaded = [_load_step(record) for record in document["steps"]]
    except (ValueError, TypeError, KeyError, AttributeError, ParameterError, pa.ArrowException) as error:
        raise CorruptFileError(
            f"this isn't a fitted preparation chain ({type(error).__name__}: {error}). "
            "Give a file that FittedPrep.save(...) wrote."
        ) from error
    return tuple(step for step, _ in loaded), tuple(state for _, state in loaded)


def _load_step(record: dict[str, Any]) -> tuple[Step, pa.Table]:
    if record["step"] not in _STEPS:
        raise ValueError(f"there is no step {record['step']!r}; there are {', '.join(_STEPS)}")
    options = {name: _decode(value) for name, value in record["options"].items()}
    step = _STEPS[record["step"]](*record["columns"], **options)
    schema = state_schema(step)
    rows = [{name: _decode(row[name]) for name in schema.names} for row in record["state"]]
    return step, pa.Table.from_pylist(rows, schema=schema)


def _own(step: Step, state: pa.Table) -> pa.Table:
    """The rows of a state of value counts that are of the step's own columns, in a fixed order."""
    if not step.counted():
        return state.select(state_schema(step).names)
    mine = state.filter(pc.is_in(state.column("column"), value_set=pa.array(step.counted())))
    return mine.sort_by([("column", "ascending"), ("value", "ascending")])


def _encode(value: Any, where: str) -> Any:
    if (
        value is None
        or isinstance(value, bool | int | str)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    if isinstance(value, list | tuple):
        return [_encode(item, where) for item in value]
    if isinstance(value, dict):
        return {"$dict": [[_encode(k, where), _encode(v, where)] for k, v in value.items()]}
    for tag, (kind, write, _) in _TAGGED.items():
        if isinstance(value, kind):
            return {f"${tag}": write(value)}
    raise SerializationError(
        f"{where}: {value!r} ({type(value).__name__}) can't be saved as JSON. "
        "Use a number, text, date or Decimal."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "$dict":
        return {_decode(k): _decode(v) for k, v in content}
    return _TAGGED[tag.removeprefix("$")][2](content)
