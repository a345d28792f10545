"""String kernels: what the namespace ``.str`` computes."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import ParameterError
from .call import register, unary
from .cast import cast_value
from .types import NoCommonTypeError, Value, type_name

_ISO_DATE = "%Y-%m-%d"


def align_text(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Check that the values are strings."""
    if pa.types.is_null(values[0].type):
        return [values[0].cast(pa.string()), *values[1:]]
    if not pa.types.is_string(values[0].type):
        raise NoCommonTypeError(f"it takes a string, not {type_name(values[0].type)}")
    return values


def _text(name: str, **properties: Any) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    hint = f"Cast it first, as {{0}}.cast('string').str.{name}(…)."
    return register(f"str.{name}", align=align_text, hint=hint, **properties)


for _name, _kernel in {
    "lower": "utf8_lower",
    "upper": "utf8_upper",
    "title": "utf8_title",
    "capitalize": "utf8_capitalize",
    "reverse": "utf8_reverse",
    "split_whitespace": "utf8_split_whitespace",
}.items():
    _text(_name)(unary(getattr(pc, _kernel)))


def _strip(name: str, side: str) -> None:
    white, given = getattr(pc, f"utf8_{side}_whitespace"), getattr(pc, f"utf8_{side}")

    @_text(name)
    def kernel(x: Value, chars: str | None = None) -> Value:
        return white(x) if chars is None else given(x, characters=chars)


_strip("strip", "trim")
_strip("lstrip", "ltrim")
_strip("rstrip", "rtrim")


@_text("len")
def length(x: Value) -> Value:
    """Characters."""
    return pc.utf8_length(x).cast(pa.int64())


@_text("starts_with")
def starts_with(x: Value, prefix: str) -> Value:
    """Whether it starts so."""
    return pc.starts_with(x, pattern=prefix)


@_text("ends_with")
def ends_with(x: Value, suffix: str) -> Value:
    """Whether it ends so."""
    return pc.ends_with(x, pattern=suffix)


@_text("contains")
def contains(x: Value, pattern: str, literal: bool = False) -> Value:
    """Whether it is found."""
    return (pc.match_substring if literal else pc.match_substring_regex)(x, pattern=pattern)


@_text("like")
def like(x: Value, pattern: str) -> Value:
    """SQL LIKE."""
    return pc.match_like(x, pattern=pattern)


@_text("replace")
def replace(x: Value, pattern: str, value: str, literal: bool = False, n: int = -1) -> Value:
    """Replace the first n matches."""
    function = pc.replace_substring if literal else pc.replace_substring_regex
    return function(x, pattern=pattern, replacement=value, max_replacements=n)


@_text("extract")
def extract(x: Value, pattern: str, group: int | str = 1) -> Value:
    """A group of the first match."""
    return pc.struct_field(pc.extract_regex(x, pattern=_only_group(pattern, group)), "g")


def check_pattern(pattern: str) -> None:
    """Raise ParameterError unless a text is a regular expression that RE2 takes."""
    try:
        pc.match_substring_regex(pa.array([""]), pattern=pattern)
    except pa.ArrowInvalid as error:
        raise ParameterError(
            f"{pattern!r} is no regular expression: {error}. Write literal=True to look for the text itself."
        ) from None


#: an escape, a character class, or the start of a group
_PARTS = re.compile(
    r"\\Q.*?(?:\\E|$)|\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]])*\]|\((?:\?P?<(\w+)>|(?!\?))", re.S
)


def _groups(pattern: str) -> list[re.Match[str]]:
    return [match for match in _PARTS.finditer(pattern) if match[0].startswith("(")]


def check_group(pattern: str, group: int | str) -> None:
    """Raise ParameterError unless a pattern has a group."""
    check_pattern(pattern)
    groups = _groups(pattern)
    names = [match[1] for match in groups if match[1]]
    if isinstance(group, str) and group not in names:
        raise ParameterError(
            f"extract({pattern!r}): there is no group {group!r}; its named groups are {names}."
        )
    if isinstance(group, int) and not 0 <= group <= len(groups):
        hint = " Put parentheses around what to extract." if not groups else ""
        raise ParameterError(f"extract({pattern!r}): there is no group {group}; it has {len(groups)}.{hint}")


def _only_group(pattern: str, group: int | str) -> str:
    """Name one group ``g`` and make the others non-capturing, as Arrow wants all groups named."""
    groups = _groups(pattern)
    chosen = group - 1 if isinstance(group, int) else next(i for i, m in enumerate(groups) if m[1] == group)
    parts, end = [], 0
    for index, match in enumerate(groups):
        parts += [pattern[end : match.start()], "(?P<g>" if index == chosen else "(?:"]
        end = match.end()
    rewritten = "".join(parts) + pattern[end:]
    return f"(?P<g>{rewritten})" if group == 0 else rewritten


@_text("slice")
def slice_(x: Value, start: int, length: int | None = None) -> Value:
    """Characters from a position on."""
    if length is None:
        return pc.utf8_slice_codeunits(x, start=start)
    stop = start + length
    return pc.utf8_slice_codeunits(x, start=start, stop=None if start < 0 <= stop else stop)


@_text("split")
def split(x: Value, separator: str) -> Value:
    """Pieces between separators."""
    return pc.split_pattern(x, pattern=separator)


@_text("pad_start")
def pad_start(x: Value, width: int, fill: str = " ") -> Value:
    """Filled at the start."""
    return pc.utf8_lpad(x, width=width, padding=fill)


@_text("pad_end")
def pad_end(x: Value, width: int, fill: str = " ") -> Value:
    """Filled at the end."""
    return pc.utf8_rpad(x, width=width, padding=fill)


@_text("zfill")
def zfill(x: Value, width: int) -> Value:
    """Zeros after the sign."""
    return pc.utf8_zero_fill(x, width=width)


@_text("count")
def count(x: Value, pattern: str, literal: bool = False) -> Value:
    """Occurrences without overlap."""
    return (pc.count_substring if literal else pc.count_substring_regex)(x, pattern=pattern).cast(pa.int64())


@_text("find")
def find(x: Value, text: str) -> Value:
    """Position in characters."""
    if not text:
        return pc.multiply(pc.utf8_length(x), 0).cast(pa.int64())
    before = pc.list_element(pc.split_pattern(x, pattern=text, max_splits=1), 0)
    found = pc.match_substring(x, pattern=text)
    return pc.if_else(found, pc.utf8_length(before), pa.scalar(-1, pa.int32())).cast(pa.int64())


@_text("to_date", raises=True)
def to_date(x: Value, format: str = _ISO_DATE, strict: bool = True) -> Value:
    """Parse dates."""
    if format == _ISO_DATE:
        return cast_value(x, pa.date32(), strict)
    return cast_value(_parse(x, format, strict), pa.date32())


@_text("to_datetime", raises=True)
def to_datetime(x: Value, format: str | None = None, strict: bool = True) -> Value:
    """Parse timestamps."""
    if format is None:
        return cast_value(x, pa.timestamp("us"), strict)
    if ".%f" not in format:
        return _parse(x, format, strict)
    fraction = pc.struct_field(pc.extract_regex(x, pattern=r":\d\d\.(?P<f>\d{1,6})"), "f")
    micros = pc.utf8_slice_codeunits(pc.utf8_rpad(fraction, width=6, padding="0"), 0, 6).cast(pa.int64())
    whole = pc.replace_substring_regex(x, pattern=r"(:\d\d)\.\d{1,6}", replacement=r"\1", max_replacements=1)
    parsed = _parse(whole, format.replace(".%f", ""), strict)
    return pc.add(parsed, pc.fill_null(micros, 0).cast(pa.duration("us")))


def _parse(x: Value, format: str, strict: bool) -> Value:
    parsed = pc.strptime(x, format=format, unit="us", error_is_null=not strict)
    late = pc.and_(pc.less_equal(pc.day(parsed), 3), pc.match_substring_regex(x, pattern="29|30|31"))
    if not pc.any(late).as_py():
        return parsed
    # the C library turns 31 February into 3 March; look again at what may be such a day
    suspects = pc.unique(pc.filter(x, pc.fill_null(late, False)))
    wrong = [text for text in suspects.to_pylist() if not _is_date(text, format)]
    if not wrong:
        return parsed
    if strict:
        raise pa.ArrowInvalid(f"Failed to parse string: '{wrong[0]}' as {format}")
    return pc.if_else(
        pc.is_in(x, value_set=pa.array(wrong, pa.string())), pa.scalar(None, parsed.type), parsed
    )


def _is_date(text: str, format: str) -> bool:
    try:
        datetime.datetime.strptime(text, format)
    except ValueError:
        return False
    return True
