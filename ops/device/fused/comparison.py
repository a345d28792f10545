"""Comparisons and logic in a kernel; strings compare by their codes in one ascending dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...expressions.call import Call
from .emitter import Emitter, Term, refuse, rule
from .types import c_type

SIGNS = {
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
}
#: members of a list that are compared one by one
_FEW = 8


@rule(*SIGNS)
def _compare(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    sign = SIGNS[call.function]
    if pa.types.is_string(args[0].type):
        args = emit.together(args, ascending=call.function not in ("equal", "not_equal"))
    a, b = args
    if a.type != b.type:  # only unsigned against signed 64 bits come here
        return emit.strict(type, f"order({a.value}, {b.value}) {sign} 0", args)
    return emit.strict(type, f"{a.value} {sign} {b.value}", args)


@rule("and", "or")
def _and_or(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a, b = args
    if not pa.types.is_boolean(type):
        return emit.strict(
            type, f"({c_type(type)})({a.value} {'&' if call.function == 'and' else '|'} {b.value})", args
        )
    known = emit.every([a.valid, b.valid])
    if call.function == "and":
        decided = [emit.every([x.valid, emit.let("bool", f"!{x.value}")]) for x in args]
        value = emit.every([emit.every([x.valid, x.value]) for x in args])
    else:
        decided = [emit.every([x.valid, x.value]) for x in args]
        value = emit.some(decided)
    return Term(type, value, known if known == "true" else emit.some([known, *decided]))


@rule("xor", "not")
def _bits(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    values = [arg.value for arg in args]
    if call.function == "xor":
        return emit.strict(type, f"({c_type(type)})({values[0]} ^ {values[1]})", args)
    sign = "!" if pa.types.is_boolean(type) else "~"
    return emit.strict(type, f"({c_type(type)})({sign}{values[0]})", args)


def is_in(emit: Emitter, value: Term, members: pa.Array, type: pa.DataType) -> Term:
    """Whether a value is one of some constants."""
    refuse(pa.types.is_string(value.type), "texts of several columns are looked for on the host")
    wanted = members.drop_null()
    if pa.types.is_floating(value.type):
        plain = wanted.to_numpy(zero_copy_only=False)
        wanted = pa.array(np.unique(plain[~np.isnan(plain)] + 0.0), value.type)
    else:
        wanted = wanted.unique()
        wanted = wanted.take(pc.sort_indices(wanted))
    if len(wanted) > _FEW:
        return emit.term(type, f"{emit.place(value.value, value.type, wanted)} >= 0", value.valid)
    tests = [f"{value.value} == {emit.constant(item).value}" for item in wanted]
    return emit.term(type, " || ".join(tests) or "false", value.valid)


@rule("is_null", "is_not_null")
def _is_null(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    valid = args[0].valid
    if call.function == "is_not_null":
        return Term(type, valid)
    return Term(type, {"true": "false", "false": "true"}.get(valid) or emit.let("bool", f"!{valid}"))


@rule("is_nan", "is_not_nan", "is_finite")
def _is_nan(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a = args[0]
    if not pa.types.is_floating(a.type):
        return Term(type, "false" if call.function == "is_nan" else "true", a.valid)
    text = {
        "is_nan": f"{a.value} != {a.value}",
        "is_not_nan": f"{a.value} == {a.value}",
        "is_finite": f"isfinite({a.value})",
    }
    return emit.strict(type, text[call.function], args)
