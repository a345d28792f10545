"""Choices in a kernel: when, coalesce, filling, least and greatest, clipping, and row hashes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ....lineage import hashing
from ...expressions.call import Call
from .emitter import Emitter, Term, refuse, rule
from .types import c_type


def choose(emit: Emitter, condition: str, a: Term, b: Term) -> Term:
    """One value where a condition holds, else the other; both of one type and dictionary."""
    if condition in ("true", "false"):
        return a if condition == "true" else b
    value = a.value if a.value == b.value else f"{condition} ? {a.value} : {b.value}"
    if a.valid == b.valid:
        valid = a.valid
    elif a.valid in ("true", condition):
        valid = emit.some([condition, b.valid])
    else:
        valid = emit.let("bool", f"{condition} ? {a.valid} : {b.valid}")
    return Term(a.type, emit.let(c_type(a.type), value), valid, None, a.words)


def _together(emit: Emitter, terms: list[Term], ascending: bool = False) -> list[Term]:
    return emit.together(terms, ascending) if pa.types.is_string(terms[0].type) else terms


@rule("when")
def _when(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    *values, result = _together(emit, [*args[1::2], args[-1]])
    for condition, value in reversed(list(zip(args[:-1:2], values))):
        result = choose(emit, emit.every([condition.valid, condition.value]), value, result)
    return result


@rule("coalesce", "fill_null")
def _coalesce(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    *values, result = _together(emit, args)
    for value in reversed(values):
        result = choose(emit, value.valid, value, result)
    return result


@rule("fill_nan")
def _fill_nan(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    value, other = args
    if not pa.types.is_floating(type):
        return value
    nan = emit.every([value.valid, emit.let("bool", f"{value.value} != {value.value}")])
    return choose(emit, nan, other, value)


@rule("least", "greatest")
def _extreme(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    first, *others = _together(emit, args, ascending=True)
    sign = "<" if call.function == "least" else ">"
    for other in others:
        better = f"{other.value} {sign} {first.value}"
        if pa.types.is_floating(type):
            better = f"({better} || {first.value} != {first.value})"
        better = emit.let("bool", better)
        if first.valid != "true":
            better = emit.some([better, emit.let("bool", f"!{first.valid}")])
        wins = emit.every([other.valid, better])
        chosen = choose(emit, wins, other, first)
        first = Term(type, chosen.value, emit.some([first.valid, other.valid]), None, first.words)
    return first


@rule("clip_lower", "clip_upper")
def _clip(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    value, bound = _together(emit, args, ascending=True)
    sign = "<" if call.function == "clip_lower" else ">"
    outside = emit.let("bool", f"{value.value} {sign} {bound.value}")
    clipped = choose(emit, outside, bound, value)
    return Term(type, clipped.value, emit.every([value.valid, bound.valid]), None, value.words)


@rule("hash_unit")
def _hash_unit(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    """The host's row hash, for columns of at most 64 bits; its steps are in ``lineage/hashing.py``."""
    seed = int(hashing.start_state(dict(call.options).get("seed", 0)))
    state = f"{seed}ULL"
    null = f"{int(hashing.NULL_WORD)}ULL"
    for arg in args:
        t = pa.types
        refuse(t.is_string(arg.type), "texts beside other columns are hashed on the host")
        refuse(t.is_decimal(arg.type), "decimals are hashed on the host")
        if t.is_floating(arg.type):
            word = f"float_word((double){arg.value})"
        else:
            word = f"(unsigned long long){arg.value}"
        if arg.valid != "true":
            word = f"({arg.valid} ? {word} : {null})"
        state = emit.let("unsigned long long", f"mix({state} ^ {word})")
    return emit.term(type, f"(double)({state} >> 11) * {float(np.float64(2.0**-53))!r}")
