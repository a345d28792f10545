"""Calendar functions in a kernel: days and years are counted by the proleptic Gregorian calendar, in UTC."""

from __future__ import annotations

import pyarrow as pa

from ...expressions.call import Call
from ...expressions.temporal_kernels import parse_span
from .casts import convert, require_utc, zone
from .emitter import Emitter, Term, refuse, rule
from .types import DAY, TICKS, c_type, integer

_OF_DATES = {
    "dt.year": "year_of",
    "dt.month": "month_of",
    "dt.day": "day_of",
    "dt.day_of_year": "day_of_year",
    "dt.week": "iso_week",
}


def _long(value: int) -> str:
    return integer(value, "long long")


def _days(emit: Emitter, term: Term) -> str:
    """Days since 1970 of a date or timestamp."""
    require_utc(term.type)
    if pa.types.is_date32(term.type):
        return emit.let("long long", f"(long long){term.value}")
    refuse(not pa.types.is_timestamp(term.type), f"{term.type} has no date")
    return emit.let("long long", f"floor_divide({term.value}, {_long(DAY * TICKS[term.type.unit])})")


def _within(emit: Emitter, term: Term, span: int) -> str:
    """Ticks since the last full span of so many seconds; 0 for dates."""
    require_utc(term.type)
    if pa.types.is_date32(term.type):
        return "0LL"
    ticks = _long(span * TICKS[term.type.unit])
    return emit.let("long long", f"modulo((long long){term.value}, {ticks})")


@rule(*_OF_DATES)
def _date_part(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    return emit.strict(type, f"{_OF_DATES[call.function]}({_days(emit, args[0])})", args)


@rule("dt.quarter")
def _quarter(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    return emit.strict(type, f"(month_of({_days(emit, args[0])}) + 2) / 3", args)


@rule("dt.weekday")
def _weekday(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    return emit.strict(type, f"modulo({_days(emit, args[0])} + 3, 7LL)", args)


@rule("dt.hour", "dt.minute", "dt.second")
def _time_part(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    whole, part = {"dt.hour": (DAY, 3600), "dt.minute": (3600, 60), "dt.second": (60, 1)}[call.function]
    inside = _within(emit, args[0], whole)
    unit = 1 if pa.types.is_date32(args[0].type) else TICKS[args[0].type.unit]
    return emit.strict(type, f"{inside} / {_long(part * unit)}", args)


@rule("dt.millisecond", "dt.microsecond", "dt.nanosecond")
def _fraction(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    inside = _within(emit, args[0], 1)
    have = 1 if pa.types.is_date32(args[0].type) else TICKS[args[0].type.unit]
    want = {"dt.millisecond": 10**3, "dt.microsecond": 10**6, "dt.nanosecond": 10**9}[call.function]
    text = f"{inside} * {_long(want // have)}" if want >= have else f"{inside} / {_long(have // want)}"
    return emit.strict(type, text, args)


@rule("dt.date")
def _date(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    return convert(emit, args[0], type)


@rule("dt.truncate")
def _truncate(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a = args[0]
    require_utc(a.type)
    multiple, unit = parse_span(dict(call.options)["every"])
    date = pa.types.is_date32(a.type)
    refuse(not date and not pa.types.is_timestamp(a.type), f"{a.type} is truncated on the host")
    tick = TICKS.get(getattr(a.type, "unit", ""), 1)
    if unit in ("year", "quarter", "month", "week", "day"):
        days = _days(emit, a)
        months = {"year": 12, "quarter": 3, "month": 1}.get(unit)
        if months:
            origin = 0 if unit == "year" else 1970
            start = f"month_start({days}, {_long(multiple * months)}, {_long(origin)})"
        elif unit == "week":
            start = f"floor_divide({days} + 3, {_long(7 * multiple)}) * {_long(7 * multiple)} - 3"
        else:
            start = f"floor_divide({days}, {_long(multiple)}) * {_long(multiple)}"
        scale = "" if date else f" * {_long(DAY * tick)}"
        return emit.strict(type, f"({c_type(type)})(({start}){scale})", args)
    refuse(date, "dates are truncated to days and more there")
    seconds = {"hour": 3600, "minute": 60, "second": 1}.get(unit)
    ticks = multiple * seconds * tick if seconds else None
    if ticks is None:
        per_second = {"millisecond": 10**3, "microsecond": 10**6, "nanosecond": 10**9}[unit]
        refuse(multiple * tick % per_second != 0, f"a span below the unit of {a.type}")
        ticks = multiple * tick // per_second
    return emit.strict(type, f"floor_divide({a.value}, {_long(ticks)}) * {_long(ticks)}", args)


@rule("dt.epoch")
def _epoch(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a = args[0]
    stamp = convert(emit, a, pa.timestamp(dict(call.options).get("unit", "s"), tz=zone(a.type)))
    return Term(type, stamp.value, stamp.valid)


@rule("dt.total_seconds")
def _total_seconds(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    return emit.strict(type, f"(double){args[0].value} / {float(TICKS[args[0].type.unit])!r}", args)


@rule("dt.days_between")
def _days_between(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    start, end = (_days(emit, arg) for arg in args)
    return emit.strict(type, f"{end} - {start}", args)
