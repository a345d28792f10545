"""Temporal kernels: what the namespace ``.dt`` computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import ParameterError, did_you_mean
from .call import register, unary
from .cast import cast_value
from .comparison import align_compared
from .types import NoCommonTypeError, Value, type_name

_SHORT_UNITS = {
    "y": "year",
    "q": "quarter",
    "mo": "month",
    "w": "week",
    "d": "day",
    "h": "hour",
    "m": "minute",
    "s": "second",
    "ms": "millisecond",
    "us": "microsecond",
    "ns": "nanosecond",
}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FLOOR = {"s": "second", "ms": "millisecond", "us": "microsecond"}


def parse_span(every: str) -> tuple[int, str]:
    """Return number and unit of a span of time, as "15m" or "month".

    Example:
        >>> parse_span("15m"), parse_span("month")
        ((15, 'minute'), (1, 'month'))
    """
    match = re.fullmatch(r"(\d*)\s*([a-z]+)", str(every).strip())
    units = list(_SHORT_UNITS.values())
    unit = match and (
        _SHORT_UNITS.get(match[2]) or next((u for u in units if match[2] in (u, f"{u}s")), None)
    )
    if not match or not unit or match[1] == "0":
        raise ParameterError(
            f"truncate({every!r}): write '15m', '1d' or 'month'. {did_you_mean(str(every), units)}"
        )
    return int(match[1] or 1), unit


def check_unit(unit: str) -> str:
    """Return a unit of time if it is one."""
    if unit not in _PER_SECOND:
        raise ParameterError(f"epoch({unit!r}): {did_you_mean(unit, _PER_SECOND)}")
    return unit


def align_temporal(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Check that the first value is temporal; a bare null is a timestamp."""
    if pa.types.is_null(values[0].type):
        return [values[0].cast(pa.timestamp("us")), *values[1:]]
    if not pa.types.is_temporal(values[0].type):
        raise NoCommonTypeError(f"it takes a date or timestamp, not {type_name(values[0].type)}")
    return values


def _temporal(name: str, **properties: Any) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    hint = "Parse a text with {0}.str.to_datetime(), convert others with {0}.cast('timestamp[us]')."
    return register(f"dt.{name}", **{"align": align_temporal, "hint": hint, **properties})


for _name, _kernel in {
    "year": "year",
    "month": "month",
    "day": "day",
    "hour": "hour",
    "minute": "minute",
    "second": "second",
    "day_of_year": "day_of_year",
    "week": "iso_week",
    "quarter": "quarter",
}.items():
    _temporal(_name)(unary(getattr(pc, _kernel)))


@_temporal("millisecond")
def millisecond(x: Value) -> Value:
    """Since the last second."""
    return pc.millisecond(x)


@_temporal("microsecond")
def microsecond(x: Value) -> Value:
    """Since the last second."""
    return pc.add(pc.multiply(pc.millisecond(x), 1000), pc.microsecond(x))


@_temporal("nanosecond")
def nanosecond(x: Value) -> Value:
    """Since the last second."""
    return pc.add(pc.multiply(microsecond(x), 1000), pc.nanosecond(x))


@_temporal("weekday")
def weekday(x: Value) -> Value:
    """Monday is 0."""
    return pc.day_of_week(x, count_from_zero=True, week_start=1)


@_temporal("date")
def date(x: Value) -> Value:
    """The local date."""
    return cast_value(x, pa.date32())


@_temporal("truncate")
def truncate(x: Value, every: str) -> Value:
    """Down to a multiple of a unit."""
    multiple, unit = parse_span(every)
    return pc.floor_temporal(x, multiple=multiple, unit=unit, week_starts_monday=True)


@_temporal("strftime")
def strftime(x: Value, format: str) -> Value:
    """Each distinct second is formatted once; Arrow's %S has a fraction where Python's doesn't, and no %f."""
    if not pa.types.is_timestamp(x.type):
        return _format_distinct(x, format)
    whole = cast_value(x, pa.timestamp("s", tz=x.type.tz))
    if not _TIME_DIRECTIVE.search(format):
        whole = pc.floor_temporal(whole, unit="day")
    pieces = [_format_distinct(whole, piece) for piece in format.split("%f")]
    if len(pieces) == 1:
        return pieces[0]
    micros = pc.utf8_lpad(microsecond(x).cast(pa.string()), width=6, padding="0")
    return pc.binary_join_element_wise(*pieces, micros)


#: a directive that depends on the time of day
_TIME_DIRECTIVE = re.compile(r"%[^aAbBdjmyYUuVwWCeDFghxGnt%]")


def _format_distinct(x: Value, format: str) -> Value:
    if isinstance(x, pa.ChunkedArray):
        return pa.chunked_array([_format_distinct(chunk, format) for chunk in x.chunks], pa.string())
    encoded = x.dictionary_encode()
    # Arrow takes no empty format
    texts = pc.utf8_slice_codeunits(pc.strftime(encoded.dictionary, format=f".{format}"), start=1)
    return texts.take(encoded.indices)


@_temporal("epoch")
def epoch(x: Value, unit: str = "s") -> Value:
    """Full units since 1970."""
    if not (pa.types.is_timestamp(x.type) or pa.types.is_date(x.type)):
        raise NoCommonTypeError(f"it takes a date or timestamp, not {type_name(x.type)}")
    zone = x.type.tz if pa.types.is_timestamp(x.type) else None
    return cast_value(x, pa.timestamp(unit, tz=zone)).cast(pa.int64())


@_temporal("total_seconds", hint="Subtract two timestamps to get a duration.")
def total_seconds(x: Value) -> Value:
    """Durations as float64."""
    if not pa.types.is_duration(x.type):
        raise NoCommonTypeError(f"it takes a duration, not {type_name(x.type)}")
    return pc.divide(x.cast(pa.int64()).cast(pa.float64(), safe=False), float(_PER_SECOND[x.type.unit]))


@_temporal("days_between", align=align_compared)
def days_between(start: Value, end: Value) -> Value:
    """Midnights passed."""
    return pc.days_between(start, end)
