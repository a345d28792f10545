"""User functions: called so that what goes wrong in them is told as theirs, and checked for pickling."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import pyarrow as pa

from ..errors import SerializationError, UserFunctionError
from .kernel import Context

#: of a sample row in an error
_MOST_COLUMNS, _MOST_CHARACTERS = 20, 60


def call(function: Callable[[Any], Any], batch: Any, label: str, rows: pa.Table, context: Context) -> Any:
    """Call a user function on a batch.

    Raises:
        UserFunctionError: it raised; the message has its own traceback, the partition and a row.
    """
    try:
        return function(batch)
    except (Exception, SystemExit) as error:
        raise UserFunctionError(
            f"{label} raised {type(error).__name__}: {error}\n{where(rows, context)}\n{own_traceback(error)}"
        ) from error


def own_traceback(error: BaseException) -> str:
    """Write an error's traceback from the user's first frame on, leaving out the frame that called it."""
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def where(rows: pa.Table, context: Context) -> str:
    """Say which partition a batch is of, and show its first row, shortened."""
    operator = f" of {context.operator}" if context.operator else ""
    return f"in partition {context.partition}{operator}; the batch's first row: {sample_row(rows)}"


def sample_row(rows: pa.Table) -> str:
    """Write the first row as a dict, long values and further columns cut off."""
    if not rows.num_rows:
        return "none (the batch is empty)"
    parts = []
    for name in rows.column_names[:_MOST_COLUMNS]:
        text = repr(rows.column(name)[0].as_py())
        parts.append(f"{name!r}: {text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + '…'}")
    more = f", and {rows.num_columns - _MOST_COLUMNS} more" if rows.num_columns > _MOST_COLUMNS else ""
    return "{" + ", ".join(parts) + more + "}"


def check_picklable(function: Callable[..., Any]) -> None:
    """Raise unless a function can be sent to the workers.

    Args:
        function: a function, lambda, method or callable object.

    Raises:
        SerializationError: it can't; names the captured object that is in the way.

    Example:
        >>> check_picklable(lambda batch: batch)
    """
    try:
        cloudpickle.dumps(function)
    except Exception as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        culprits = [
            f"{what}, a {type(value).__module__}.{type(value).__qualname__}"
            for what, value in _captured(function)
            if not _pickles(value)
        ]
        held = f"it uses {' and '.join(culprits)}" if culprits else f"{type(error).__name__}: {error}"
        raise SerializationError(
            f"the function {name!r} can't be sent to the workers: {held}. "
            "Make such an object (a connection, lock, open file or the like) inside the function, and pass "
            "only plain values such as a path or an address into it."
        ) from error


def _captured(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """What a function carries along: closure, globals it reads, defaults, its object's attributes."""
    owner = getattr(function, "__self__", None)
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        owner = function
    for name, value in getattr(owner, "__dict__", {}).items():
        yield f"the attribute {name!r}", value
    inner = getattr(function, "__func__", getattr(function, "func", function))
    if not inspect.isfunction(inner):
        return
    variables = inspect.getclosurevars(inner)
    for name, value in variables.nonlocals.items():
        yield f"the captured variable {name!r}", value
    for name, value in variables.globals.items():
        if not inspect.ismodule(value):
            yield f"the global {name!r}", value
    for name, parameter in inspect.signature(inner).parameters.items():
        if parameter.default is not parameter.empty:
            yield f"the default of {name!r}", parameter.default


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True
