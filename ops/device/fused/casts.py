"""Casts: a value of the row as another type, with the host's rules for what doesn't fit."""

from __future__ import annotations

import pyarrow as pa

from ..column import SHORT_DECIMAL
from .emitter import Emitter, Term, refuse
from .types import DAY, TICKS, Refused, c_type, integer, is_signed, limits


def convert(emit: Emitter, term: Term, type: pa.DataType, strict: bool = True) -> Term:
    """Return a value as another type.

    Args:
        emit: where the lines go.
        term: the value.
        type: the type it becomes.
        strict: True lets the kernel report what doesn't fit, False makes it null.

    Raises:
        Refused: this conversion has no form in a kernel.
    """
    source = term.type
    if source == type:
        return term
    if term.valid == "false":
        return emit.null(type)
    t = pa.types
    whole = t.is_integer(source) or t.is_boolean(source)
    if t.is_decimal(source):
        return _of_decimal(emit, term, type, strict)
    if t.is_boolean(type) and (whole or t.is_floating(source)):
        return emit.term(type, f"{term.value} != 0", term.valid)
    if t.is_floating(type) and (whole or t.is_floating(source)):
        return emit.term(type, f"({c_type(type)}){term.value}", term.valid)
    if t.is_integer(type) and whole:
        return _whole(emit, term, type, strict)
    if t.is_integer(type) and t.is_floating(source):
        return _of_float(emit, term, type, strict)
    if t.is_decimal(type) and whole:
        return _scaled(emit, term, type, 0, strict)
    if t.is_temporal(source) or t.is_temporal(type):
        return _times(emit, term, type, strict)
    raise Refused(f"a cast from {source} to {type} is made on the host")


def checked(emit: Emitter, type: pa.DataType, text: str, valid: str, bad: str, strict: bool) -> Term:
    """Compute a value that doesn't fit where ``bad`` holds."""
    bad = emit.let("bool", bad)
    if strict:
        emit.fail(emit.every([valid, bad]))
        return emit.term(type, text, valid)
    return emit.term(type, text, emit.every([valid, emit.let("bool", f"!{bad}")]))


def power_of_ten(exponent: int) -> str:
    """Write a power of ten as an integer."""
    refuse(not 0 <= exponent <= SHORT_DECIMAL, f"it moves a decimal point by {exponent} digits")
    return integer(10**exponent, "long long")


def _whole(emit: Emitter, term: Term, type: pa.DataType, strict: bool) -> Term:
    text = f"({c_type(type)}){term.value}"
    if pa.types.is_boolean(term.type):
        return emit.term(type, text, term.valid)
    (low, high), (least, most) = limits(term.type), limits(type)
    own = c_type(term.type)
    bad = [f"{term.value} < {integer(least, own)}"] if low < least else []
    bad += [f"{term.value} > {integer(most, own)}"] if high > most else []
    if not bad:
        return emit.term(type, text, term.valid)
    return checked(emit, type, text, term.valid, " || ".join(bad), strict)


def _of_float(emit: Emitter, term: Term, type: pa.DataType, strict: bool) -> Term:
    """Fractions are dropped; the largest integers aren't floats, but one more is."""
    wide = emit.let("double", f"trunc((double){term.value})")
    least, most = limits(type)
    fits = emit.let("bool", f"{wide} >= {float(least)!r} && {wide} < {float(most + 1)!r}")
    text = f"{fits} ? ({c_type(type)}){wide} : ({c_type(type)})0"
    return checked(emit, type, text, term.valid, f"!{fits}", strict)


def _of_decimal(emit: Emitter, term: Term, type: pa.DataType, strict: bool) -> Term:
    scale, t = term.type.scale, pa.types
    if t.is_boolean(type):
        return emit.term(type, f"{term.value} != 0", term.valid)
    if t.is_floating(type):
        refuse(not 0 <= scale <= SHORT_DECIMAL, f"decimals of scale {scale} become floats on the host")
        quotient = f"(double){term.value} / {float(10**scale)!r}"
        return emit.term(type, f"({c_type(type)})({quotient})", term.valid)
    if t.is_decimal(type):
        if type.scale >= scale:
            return _scaled(emit, term, type, scale, strict)
        cut = f"round_half_away({term.value}, {power_of_ten(scale - type.scale)})"
        rounded = emit.let("long long", cut)
        limit = power_of_ten(type.precision)
        bad = f"{rounded} <= -{limit} || {rounded} >= {limit}"
        return checked(emit, type, rounded, term.valid, bad, strict)
    if t.is_integer(type):
        refuse(scale < 0, f"decimals of scale {scale} become integers on the host")
        cut = emit.let("long long", f"{term.value} / {power_of_ten(scale)}")
        return _whole(emit, Term(pa.int64(), cut, term.valid), type, strict)
    raise Refused(f"a cast from {term.type} to {type} is made on the host")


def _scaled(emit: Emitter, term: Term, type: pa.DataType, scale: int, strict: bool) -> Term:
    """Give an integer, or a decimal's, as many more zeros as a scale asks for."""
    c_type(type)
    factor = power_of_ten(type.scale - scale)
    if pa.types.is_decimal(term.type):
        digits = term.type.precision - term.type.scale
    else:
        digits = 1 if pa.types.is_boolean(term.type) else len(str(max(map(abs, limits(term.type)))))
    room = type.precision - type.scale
    if digits <= room:
        return emit.term(type, f"(long long){term.value} * {factor}", term.valid)
    limit = power_of_ten(type.precision - type.scale + scale)
    if pa.types.is_unsigned_integer(term.type):
        bad = f"{term.value} >= (unsigned long long){limit}"
    else:
        bad = f"{term.value} <= -{limit} || {term.value} >= {limit}"
    bad = emit.let("bool", bad)
    return checked(emit, type, f"{bad} ? 0LL : (long long){term.value} * {factor}", term.valid, bad, strict)


def zone(type: pa.DataType) -> str | None:
    """Return the time zone of a timestamp."""
    return type.tz if pa.types.is_timestamp(type) else None


def require_utc(type: pa.DataType) -> None:
    """Refuse a timestamp whose local time isn't UTC's."""
    refuse(zone(type) not in (None, "UTC"), f"the zone {zone(type)} is known on the host only")


def _times(emit: Emitter, term: Term, type: pa.DataType, strict: bool) -> Term:
    source, t = term.type, pa.types
    if t.is_date32(source) and t.is_timestamp(type):
        refuse(zone(type) is not None, "a date gets its zone on the host")
        return _finer(emit, term, type, DAY * TICKS[type.unit], strict)
    if t.is_timestamp(source) and t.is_date32(type):
        require_utc(source)
        ticks = integer(DAY * TICKS[source.unit], "long long")
        return emit.term(type, f"(int)floor_divide({term.value}, {ticks})", term.valid)
    same = (
        (t.is_timestamp(source) and t.is_timestamp(type) and source.tz == type.tz)
        or (t.is_duration(source) and t.is_duration(type))
        or (t.is_time(source) and t.is_time(type))
    )
    if same:
        have, want = TICKS[source.unit], TICKS[type.unit]
        if want >= have:
            return _finer(emit, term, type, want // have, strict)
        ticks = integer(have // want, "long long")
        wide = f"(long long){term.value}"
        cut = f"floor_divide({wide}, {ticks})" if t.is_timestamp(source) else f"{wide} / {ticks}"
        return emit.term(type, f"({c_type(type)})({cut})", term.valid)
    for number, time in ((source, type), (type, source)):
        if t.is_integer(number) and is_signed(number) and number.bit_width == time.bit_width:
            refuse(t.is_decimal(time), "decimals aren't times")
            return emit.term(type, f"({c_type(type)}){term.value}", term.valid)
    raise Refused(f"a cast from {source} to {type} is made on the host")


def _finer(emit: Emitter, term: Term, type: pa.DataType, factor: int, strict: bool) -> Term:
    if factor == 1:
        return Term(type, term.value, term.valid)
    ctype = c_type(type)
    wide = f"(long long){term.value}"
    source_bits, bits = term.type.bit_width, type.bit_width
    if pa.types.is_time(type) or (1 << (source_bits - 1)) * factor < 1 << (bits - 1):
        return emit.term(type, f"({ctype})({wide} * {integer(factor, 'long long')})", term.valid)
    most = (2**63 - 1) // factor
    bad = emit.let("bool", f"{wide} > {integer(most, 'long long')} || {wide} < {integer(-most, 'long long')}")
    text = f"{bad} ? 0LL : {wide} * {integer(factor, 'long long')}"
    return checked(emit, type, text, term.valid, bad, strict)
