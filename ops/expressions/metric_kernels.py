"""Metric kernels: what a target and a prediction contribute to a metric in each row (see ops/metrics.py).

A row without a target or a prediction, or with one that the metric can't take, is an error and never left out:
a metric of the other rows would look fine. Each kernel has ``where``, the metric as the user wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import HeadwaterError
from .call import register
from .types import NoCommonTypeError, Value, is_number, meet, retype, type_name

#: target and score as one value, for the aggregation ``auc`` (see ops/ranking.py)
RANKED = pa.struct([("target", pa.int64()), ("score", pa.float64())])


def _register(name: str, align: Callable[..., Sequence[Value]]) -> Callable[..., Any]:
    return register(
        f"metrics.{name}",
        align=align,
        raises=True,
        strict=False,
        display=lambda texts, operands: f"{name}({', '.join(texts)})",
    )


def _numbers(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring numbers and booleans to float64; lists of numbers stay."""
    result = []
    for value in values:
        if pa.types.is_boolean(value.type):
            value = value.cast(pa.int8())
        if pa.types.is_list(value.type) or pa.types.is_fixed_size_list(value.type):
            result.append(value)
        elif is_number(value.type) or pa.types.is_null(value.type):
            result.append(retype(value, pa.float64()))
        else:
            raise NoCommonTypeError(f"it takes numbers, not {type_name(value.type)}")
    return result


def _plain(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring numbers and booleans to float64, and refuse lists."""
    values = _numbers(values, weak)
    if lists := [value.type for value in values if not pa.types.is_float64(value.type)]:
        raise NoCommonTypeError(f"it takes one number a row, not {type_name(lists[0])}")
    return values


def _labels(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring labels to one type; booleans are 0 and 1."""
    return meet([v.cast(pa.int8()) if pa.types.is_boolean(v.type) else v for v in values], weak, exact=True)


@_register("squared_error", _plain)
def squared_error(target: Value, prediction: Value, where: str) -> Value:
    """The square of the difference."""
    a, b = _pair(target, prediction, where, "prediction")
    return pa.array((a - b) ** 2)


@_register("absolute_error", _plain)
def absolute_error(target: Value, prediction: Value, where: str) -> Value:
    """The size of the difference."""
    a, b = _pair(target, prediction, where, "prediction")
    return pa.array(np.abs(a - b))


@_register("brier", _plain)
def brier(target: Value, score: Value, where: str) -> Value:
    """The square of the difference between a class, 0 or 1, and its probability."""
    a, b = _pair(target, score, where, "score")
    _check_binary(a, where)
    _check_probability(b, where)
    return pa.array((a - b) ** 2)


@_register("log_loss", _numbers)
def log_loss(target: Value, score: Value, where: str) -> Value:
    """Minus the logarithm of the probability that the target's class was given."""
    if not pa.types.is_float64(target.type):
        raise NoCommonTypeError(f"the target is one number a row, not {type_name(target.type)}")
    if pa.types.is_float64(score.type):
        a, b = _pair(target, score, where, "score")
        _check_binary(a, where)
        _check_probability(b, where)
        likely = np.where(a == 1, b, 1 - b)
    else:
        likely = _of_class(_checked(_array(target, 1), where, "target"), score, where)
    small = np.finfo(np.float64).eps
    return pa.array(-np.log(np.clip(likely, small, 1 - small)))


@_register("correct", _labels)
def correct(target: Value, prediction: Value, where: str) -> Value:
    """Whether the labels are equal, as 1 or 0."""
    rows = _rows(target, prediction)
    for value, name in ((target, "target"), (prediction, "prediction")):
        _check_present(_array(value, rows), where, name)
    return pc.equal(target, prediction).cast(pa.int64())


@_register("indicator", _labels)
def indicator(label: Value, positive: Value, where: str, name: str) -> Value:
    """1 where a label is the positive one, else 0."""
    _check_present(_array(label, 1), where, name)
    if positive.type == pa.int8() or positive.as_py() == 1:
        found = pc.unique(label).to_pylist()
        if is_number(label.type) and not set(found) <= {0, 1}:
            raise _not_binary(found, where, name, "Say which label is the positive one, as positive=2.")
    return pc.equal(label, positive).cast(pa.int64())


@_register("ranked", _plain)
def ranked(target: Value, score: Value, where: str) -> Value:
    """Target and score as one value."""
    a, b = _pair(target, score, where, "score")
    _check_binary(a, where)
    return pa.StructArray.from_arrays([pa.array(a.astype(np.int64)), pa.array(b)], fields=list(RANKED))


def _rows(*values: Value) -> int:
    return next((len(value) for value in values if not isinstance(value, pa.Scalar)), 1)


def _array(value: Value, rows: int) -> pa.Array:
    if isinstance(value, pa.Scalar):
        return pa.repeat(value, rows)
    return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value


def _pair(target: Value, prediction: Value, where: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, shape (rows,); without nulls and NaNs."""
    rows = _rows(target, prediction)
    return (
        _checked(_array(target, rows), where, "target"),
        _checked(_array(prediction, rows), where, name),
    )


def _checked(values: pa.Array, where: str, name: str) -> np.ndarray:
    _check_present(values, where, name)
    return values.to_numpy(zero_copy_only=False)


def _check_present(values: pa.Array, where: str, name: str) -> None:
    missing = pc.sum(pc.is_null(values, nan_is_null=pa.types.is_floating(values.type))).as_py() or 0
    if missing:
        raise HeadwaterError(
            f"{where}: {missing} of {len(values)} rows in a batch have no {name} (null or NaN). Leave such rows out "
            "first, as with drop_nulls(...), or fill them."
        )


def _check_binary(target: np.ndarray, where: str) -> None:
    odd = target[(target != 0) & (target != 1)]
    if len(odd):
        raise _not_binary(odd, where, "target", "Compare it first, as col('class') == 3.")


def _not_binary(values: Sequence[Any], where: str, name: str, instead: str) -> HeadwaterError:
    odd = [float(v) if isinstance(v, np.floating) else v for v in values if v not in (0, 1)]
    shown = ", ".join(f"{value:g}" if isinstance(value, float) else repr(value) for value in odd[:3])
    return HeadwaterError(f"{where}: the {name} has to be 0 or 1, or a boolean, and has {shown}. {instead}")


def _check_probability(score: np.ndarray, where: str) -> None:
    odd = score[(score < 0) | (score > 1)]
    if len(odd):
        raise HeadwaterError(
            f"{where}: the score has to be a probability, 0 to 1, and has {odd[0]:g}. Give the model's probabilities, "
            "not its margins or labels; auc takes any score."
        )


def _of_class(target: np.ndarray, score: Value, where: str) -> np.ndarray:
    """The probability of each row's class, from lists with one for each class."""
    lists = _array(score, len(target))
    _check_present(lists, where, "score")
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    values = _checked(lists.flatten().cast(pa.float64()), where, "score")
    _check_probability(values, where)
    known = (target == np.floor(target)) & (target >= 0) & (target < lengths)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise HeadwaterError(
            f"{where}: the target has to be the number of a class, 0 to {lengths[row] - 1} as the score has "
            f"{lengths[row]} values, and has {target[row]:g}."
        )
    return values[np.cumsum(lengths) - lengths + target.astype(np.int64)]
