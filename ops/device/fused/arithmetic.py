"""Arithmetic in a kernel: integers wrap, floats are IEEE's, decimals are exact in at most 18 digits."""

from __future__ import annotations

import pyarrow as pa

from ...expressions.call import Call
from .casts import convert, power_of_ten
from .emitter import Emitter, Term, refuse, rule
from .types import DAY, TICKS, c_type, integer, is_signed

_SIGNS = {"add": "+", "subtract": "-", "multiply": "*"}


def _wrapped(type: pa.DataType, a: str, sign: str, b: str) -> str:
    """Two's complement, which C promises of unsigned numbers only."""
    if pa.types.is_floating(type):
        return f"{a} {sign} {b}"
    return f"({c_type(type)})((unsigned long long){a} {sign} (unsigned long long){b})"


@rule("add", "subtract", "multiply")
def _sum_or_product(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a, b = args
    sign = _SIGNS[call.function]
    if pa.types.is_decimal(type):
        if sign != "*":
            a, b = (convert(emit, x, pa.decimal128(_digits(x, type), type.scale)) for x in args)
        return emit.strict(type, f"{a.value} {sign} {b.value}", args)
    if any(pa.types.is_temporal(arg.type) for arg in args):
        return _times(emit, sign, a, b, type)
    refuse(pa.types.is_string(type), "texts of several columns are joined on the host")
    refuse(not _is_number(type), f"it gives {type}")
    return emit.strict(type, _wrapped(type, a.value, sign, b.value), args)


def _digits(term: Term, type: pa.DataType) -> int:
    return term.type.precision - term.type.scale + type.scale


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type)


def _times(emit: Emitter, sign: str, a: Term, b: Term, type: pa.DataType) -> Term:
    t = pa.types
    refuse(any(t.is_time(x.type) or t.is_date64(x.type) for x in (a, b)), "times of day move on the host")
    if sign == "*":
        return _scaled_duration(emit, a, b, type)
    if t.is_date32(type):
        date, shift = (b, a) if t.is_duration(a.type) else (a, b)
        refuse(shift.scalar is None, "a date moves by a constant number of days there")
        assert shift.scalar is not None
        if not shift.scalar.is_valid:
            return emit.null(type)
        days = integer(shift.scalar.value // (DAY * TICKS[shift.type.unit]), "int")
        return emit.term(type, _wrapped(type, date.value, sign, days), date.valid)
    if t.is_date32(a.type) and t.is_date32(b.type):
        refuse(not t.is_duration(type), f"it gives {type}")
        ticks = integer(DAY * TICKS[type.unit], "long long")
        return emit.strict(type, f"((long long){a.value} - {b.value}) * {ticks}", (a, b))
    unit = type.unit
    moved = [_in_unit(emit, x, unit) for x in (a, b)]
    return emit.strict(type, _wrapped(type, moved[0].value, sign, moved[1].value), moved)


def _in_unit(emit: Emitter, term: Term, unit: str) -> Term:
    if pa.types.is_duration(term.type):
        return convert(emit, term, pa.duration(unit))
    if pa.types.is_timestamp(term.type):
        return convert(emit, term, pa.timestamp(unit, tz=term.type.tz))
    return convert(emit, term, pa.timestamp(unit))


def _scaled_duration(emit: Emitter, a: Term, b: Term, type: pa.DataType) -> Term:
    if pa.types.is_duration(b.type):
        a, b = b, a
    if pa.types.is_floating(b.type):
        product = emit.let("double", f"(double){a.value} * (double){b.value}")
        return emit.strict(type, f"to_integer({product})", (a, b))
    return emit.strict(type, _wrapped(type, a.value, "*", b.value), (a, b))


@rule("divide")
def _divide(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a, b = args
    t = pa.types
    if t.is_decimal(type):
        shift = type.scale - a.type.scale + b.type.scale
        refuse(a.type.precision + shift > 18, f"it needs {a.type.precision + shift} digits on the way")
        wide = f"{a.value} * {power_of_ten(shift)}"
        text = f"{b.value} == 0 ? 0LL : ({wide}) / {b.value}"
        return emit.term(type, text, emit.every([a.valid, b.valid, _not_zero(emit, b)]))
    if t.is_duration(a.type) and t.is_duration(b.type):
        unit = max(a.type.unit, b.type.unit, key=TICKS.__getitem__)
        a, b = (_in_unit(emit, x, unit) for x in args)
        return emit.strict(type, f"(double){a.value} / (double){b.value}", (a, b))
    if t.is_duration(a.type):
        b = convert(emit, b, pa.float64())
        ratio = emit.let("double", f"(double){a.value} / {b.value}")
        finite = emit.let("bool", f"isfinite({ratio})")
        return emit.term(type, f"to_integer({ratio})", emit.every([a.valid, b.valid, finite]))
    return emit.strict(type, f"{a.value} / {b.value}", args)


@rule("floor_divide", "modulo")
def _floor_divide(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a, b = args
    name = call.function
    if pa.types.is_decimal(type):
        scale = max(a.type.scale, b.type.scale)
        a, b = (convert(emit, x, pa.decimal128(x.type.precision - x.type.scale + scale, scale)) for x in args)
    elif pa.types.is_floating(type):
        return emit.strict(type, f"{name}_float({a.value}, {b.value})", args)
    divisible = _not_zero(emit, b)
    return emit.term(type, f"{name}({a.value}, {b.value})", emit.every([a.valid, b.valid, divisible]))


def _not_zero(emit: Emitter, divisor: Term) -> str:
    if divisor.scalar is not None and divisor.scalar.is_valid:
        return "true" if divisor.scalar.as_py() else "false"
    return emit.let("bool", f"{divisor.value} != 0")


@rule("power")
def _power(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a, b = args
    if pa.types.is_integer(type):
        text = f"({c_type(type)})power((unsigned long long){a.value}, (unsigned long long){b.value})"
    else:
        text = f"({c_type(type)})pow((double){a.value}, (double){b.value})"
    return emit.strict(type, text, args)


@rule("negate")
def _negate(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a = args[0]
    text = f"-{a.value}" if pa.types.is_floating(type) else _wrapped(type, "0", "-", a.value)
    return emit.strict(type, text, args)


@rule("abs")
def _absolute(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a = args[0]
    if pa.types.is_floating(type):
        return emit.strict(type, f"{'fabsf' if pa.types.is_float32(type) else 'fabs'}({a.value})", args)
    if pa.types.is_integer(type) and not is_signed(type):
        return a
    return emit.strict(type, f"{a.value} < 0 ? {_wrapped(type, '0', '-', a.value)} : {a.value}", args)
