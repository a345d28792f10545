"""Arguments: early checks of what users pass to the handle, so that a mistake is told at their own line."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex

from .errors import ParameterError, TypeMismatchError, column_not_found, did_you_mean

#: what other libraries call a method of Dataset
_ELSEWHERE = {
    "apply": "map_batches",
    "assign": "with_columns",
    "cache": "run",
    "collect": "compute",
    "drop_duplicates": "distinct",
    "dropna": "drop_nulls",
    "fillna": "fill_null",
    "map": "map_batches",
    "mappartitions": "map_batches",
    "map_partitions": "map_batches",
    "merge": "join",
    "order_by": "sort",
    "orderby": "sort",
    "persist": "run",
    "randomsplit": "split",
    "random_split": "split",
    "sort_values": "sort",
    "take": "head",
    "to_csv": "write_csv",
    "to_parquet": "write_parquet",
    "unique": "distinct",
    "unionall": "union",
    "where": "filter",
}


def column_names(
    names: str | Iterable[str] | None, where: str, known: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Check column names, given as one or several.

    Args:
        names: a name, several, or None for none.
        where: the method, for errors.
        known: the columns there are; None doesn't check that.

    Returns:
        The names.

    Raises:
        TypeMismatchError: something that isn't a name.
        ColumnNotFoundError: a name that isn't among ``known``.

    Example:
        >>> column_names("fare", "drop", ["fare", "tip"])
        ('fare',)
    """
    given = () if names is None else (names,) if isinstance(names, str) else names
    if not isinstance(given, Iterable) or hasattr(given, "output_name"):
        raise _no_name(given, where)
    checked = tuple(given)
    for name in checked:
        if not isinstance(name, str):
            raise _no_name(name, where)
        if known is not None and name not in known:
            raise column_not_found(name, known, where)
    return checked


def _no_name(value: Any, where: str) -> TypeMismatchError:
    column = getattr(value, "output_name", None)
    hint = f" Write {column!r}." if column else ""
    if isinstance(value, list | tuple | set):
        hint = " Unpack a list with *."
    return TypeMismatchError(
        f"{where}() takes column names here, not {value!r} ({type(value).__name__}).{hint}"
    )


def flags(value: bool | Sequence[bool], count: int, option: str) -> tuple[bool, ...]:
    """Return a flag for each of several keys, from one for all or one each.

    Raises:
        ParameterError: neither.
    """
    several = [value] * count if _is_flag(value) else list(value) if isinstance(value, list | tuple) else None
    if several is None or len(several) != count or not all(map(_is_flag, several)):
        raise ParameterError(
            f"sort({option}={value!r}): give True or False, or one for each of {count} keys."
        )
    return tuple(map(bool, several))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # NumPy's


def whole(value: SupportsIndex, where: str, option: str, least: int | None = None) -> int:
    """Return a whole number, NumPy's too.

    Args:
        value: what arrived.
        where: the method, for errors.
        option: its name.
        least: the smallest that is allowed.

    Raises:
        ParameterError: another value.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        more = "" if least is None else f", {least} or more"
        raise ParameterError(f"{where}({option}={value!r}): give a whole number{more}.")
    return number


def share(value: SupportsFloat, where: str) -> float:
    """Return a fraction between 0 and 1.

    Raises:
        ParameterError: another value.
    """
    if isinstance(value, str | bool) or not hasattr(value, "__float__") or not 0 <= float(value) <= 1:
        hint = " Unpack a list with *." if isinstance(value, list | tuple) else ""
        raise ParameterError(f"{where}({value!r}): a fraction is a number between 0 and 1, as 0.8.{hint}")
    return float(value)


def known_options(function: Callable[..., Any], options: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return options unchanged if a function takes them all.

    Raises:
        ParameterError: one it doesn't take, with near matches.

    Example:
        >>> known_options(sorted, {"reverse": True}, "sort")
        {'reverse': True}
    """
    takers = inspect.getmro(function)[:-1] if isinstance(function, type) else (function,)
    parameters = [p for taker in takers for p in inspect.signature(taker).parameters.values()]
    valid = list(dict.fromkeys(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))
    for name in options:
        if name not in valid:
            raise ParameterError(f"{where}() has no option {name!r}. {did_you_mean(name, valid)}")
    return options


def no_attribute(owner: type, name: str, columns: Sequence[str] = ()) -> AttributeError:
    """Build the error for an attribute that an object doesn't have, with what was likely meant.

    Args:
        owner: the object's class.
        name: what was asked for.
        columns: of the object; one of them is written ``col(name)``.
    """
    text = f"{owner.__name__} has no attribute {name!r}."
    if name in columns:
        return AttributeError(f"{text} A column is written col({name!r}).")
    if name.casefold() in _ELSEWHERE:
        return AttributeError(f"{text} Here it is {_ELSEWHERE[name.casefold()]}().")
    return AttributeError(f"{text} {did_you_mean(name, [n for n in dir(owner) if n[0] != '_'])}")
