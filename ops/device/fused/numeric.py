"""Elementary functions in a kernel; of float32 they are computed in double precision and rounded once."""

from __future__ import annotations

import math

import pyarrow as pa

from ...expressions.call import Call
from .casts import checked, power_of_ten
from .emitter import Emitter, Term, refuse, rule
from .types import c_type, is_signed

_FUNCTIONS = (
    "exp", "expm1", "log10", "log2", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "tanh"
)  # fmt: skip


@rule("sqrt", *_FUNCTIONS)
def _elementary(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    return emit.strict(type, f"({c_type(type)}){call.function}((double){args[0].value})", args)


@rule("log")
def _log(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    x, base = f"(double){args[0].value}", dict(call.options).get("base")
    if base is None:
        return emit.strict(type, f"({c_type(type)})log({x})", args)
    refuse(pa.types.is_float32(type), "a logarithm of float32 to another base is computed on the host")
    refuse(not base > 0, f"a logarithm to the base {base!r} is computed on the host")
    text = f"{x} == 0 ? log(0.0) : log({x}) / {math.log(base)!r}"
    return emit.strict(type, text, args)


@rule("floor", "ceil", "round")
def _rounded(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a = args[0]
    digits = dict(call.options).get("decimals", 0)
    if pa.types.is_integer(type):
        refuse(call.function == "round" and digits < 0, "integers are rounded to tens on the host")
        return a
    if pa.types.is_decimal(type):
        return _rounded_decimal(emit, call.function, a, type, digits)
    if call.function != "round":
        return emit.strict(type, f"({c_type(type)}){call.function}((double){a.value})", args)
    refuse(abs(digits) > 22, f"rounding to {digits} digits is done on the host")
    ctype = c_type(type)
    ten = f"({ctype}){10.0 ** abs(digits)!r}"
    rounded = emit.let(
        ctype,
        f"round_half_even({a.value}, {ten}, {'true' if digits > 0 else 'false'}, {'true' if digits >= 0 else 'false'})",
    )
    return checked(emit, type, rounded, a.valid, f"isfinite({a.value}) && !isfinite({rounded})", True)


def _rounded_decimal(emit: Emitter, function: str, a: Term, type: pa.DataType, digits: int) -> Term:
    scale = type.scale
    if function == "round" and digits >= scale:
        return a
    drop = scale - (digits if function == "round" else 0)
    if drop <= 0:
        return a
    refuse(drop > 18 or type.precision > 18 or drop > type.precision, f"{type} is rounded on the host")
    unit = power_of_ten(drop)
    down = emit.let("long long", f"floor_divide({a.value}, {unit})")
    text = {
        "floor": down,
        "ceil": f"{down} + ({down} * {unit} != {a.value})",
        "round": f"half_even({down}, {a.value} - {down} * {unit}, {unit})",
    }
    result = emit.let("long long", f"({text[function]}) * {unit}")
    limit = power_of_ten(type.precision)
    # Arrow makes 0 of what has no room
    return emit.strict(type, f"{result} <= -{limit} || {result} >= {limit} ? 0LL : {result}", [a])


@rule("sign")
def _sign(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a = args[0]
    ctype = c_type(type)
    positive = f"({ctype})({a.value} > 0)"
    if pa.types.is_integer(type) and not is_signed(type):
        return emit.strict(type, positive, args)
    text = f"({ctype})(({a.value} > 0) - ({a.value} < 0))"
    if pa.types.is_floating(type):
        text = f"{a.value} != {a.value} ? {a.value} : {text}"
    return emit.strict(type, text, args)
