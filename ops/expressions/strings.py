"""Strings: the functions of the namespace ``.str``. Lengths and positions count characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .operators import call

if TYPE_CHECKING:
    from .expr import Expr


class StringNamespace:
    """Functions of string expressions; null for null. Join with ``+`` or `concat_str`."""

    def __init__(self, expr: Any):
        self._expr = expr

    def len(self) -> Expr:
        """The number of characters, int64."""
        return call("str.len", self._expr)

    def lower(self) -> Expr:
        """In lower case."""
        return call("str.lower", self._expr)

    def upper(self) -> Expr:
        """In upper case."""
        return call("str.upper", self._expr)

    def title(self) -> Expr:
        """The first letter of each word in upper case, the others in lower."""
        return call("str.title", self._expr)

    def capitalize(self) -> Expr:
        """The first character in upper case, the others in lower."""
        return call("str.capitalize", self._expr)

    def reverse(self) -> Expr:
        """The characters in reverse order."""
        return call("str.reverse", self._expr)

    def strip(self, chars: str | None = None) -> Expr:
        """Without the given characters, by default white space, at both ends."""
        return call("str.strip", self._expr, chars=chars)

    def lstrip(self, chars: str | None = None) -> Expr:
        """Without the given characters, by default white space, at the start."""
        return call("str.lstrip", self._expr, chars=chars)

    def rstrip(self, chars: str | None = None) -> Expr:
        """Without the given characters, by default white space, at the end."""
        return call("str.rstrip", self._expr, chars=chars)

    def starts_with(self, prefix: str) -> Expr:
        """Whether it starts with a text."""
        return call("str.starts_with", self._expr, prefix=prefix)

    def ends_with(self, suffix: str) -> Expr:
        """Whether it ends with a text."""
        return call("str.ends_with", self._expr, suffix=suffix)

    def contains(self, pattern: str, literal: bool = False) -> Expr:
        """Whether a regular expression (RE2), or with ``literal`` a text, is found in it."""
        _check(pattern, literal)
        return call("str.contains", self._expr, pattern=pattern, literal=literal)

    def like(self, pattern: str) -> Expr:
        r"""Whether all of it matches a SQL pattern: ``%`` any text, ``_`` any character, ``\`` escapes."""
        return call("str.like", self._expr, pattern=pattern)

    def replace(self, pattern: str, value: str, literal: bool = False, n: int = -1) -> Expr:
        r"""Replace what a regular expression, or with ``literal`` a text, matches.

        Args:
            pattern: what to replace.
            value: what to put there; ``\1`` is the first group of a regular expression.
            literal: True takes both as they are.
            n: how many to replace from the left; -1 is all.

        Returns:
            A string expression.
        """
        _check(pattern, literal)
        return call("str.replace", self._expr, pattern=pattern, value=value, literal=literal, n=n)

    def extract(self, pattern: str, group: int | str = 1) -> Expr:
        r"""Return a group of the first match of a regular expression; null without a match.

        Args:
            pattern: the expression, as ``r"(\d+)-(\d+)"``.
            group: number or name of the group; 0 is the whole match.

        Returns:
            A string expression.

        Raises:
            ParameterError: the pattern has no such group.

        Example:
            >>> import pyarrow as pa
            >>> from headwater.ops.expressions import col
            >>> year = col("s").str.extract(r"(\d{4})-\d\d").cast("int64")
            >>> year.evaluate(pa.table({"s": ["on 2024-05-01", "never"]})).to_pylist()
            [2024, None]
        """
        from .string_kernels import check_group

        found = call("str.extract", self._expr, pattern=pattern, group=group)
        check_group(pattern, group)
        return found

    def slice(self, start: int, length: int | None = None) -> Expr:
        """Characters from a position on (negative: from the end); all the rest without a length."""
        return call("str.slice", self._expr, start=start, length=length)

    def split(self, separator: str) -> Expr:
        """The pieces between separators, as a list."""
        return call("str.split", self._expr, separator=separator)

    def split_whitespace(self) -> Expr:
        """The words between runs of white space, as a list without empty pieces."""
        return call("str.split_whitespace", self._expr)

    def pad_start(self, width: int, fill: str = " ") -> Expr:
        """Filled at the start to at least a number of characters."""
        return call("str.pad_start", self._expr, width=width, fill=fill)

    def pad_end(self, width: int, fill: str = " ") -> Expr:
        """Filled at the end to at least a number of characters."""
        return call("str.pad_end", self._expr, width=width, fill=fill)

    def zfill(self, width: int) -> Expr:
        """Filled with zeros after the sign to at least a number of characters."""
        return call("str.zfill", self._expr, width=width)

    def count(self, pattern: str, literal: bool = False) -> Expr:
        """How often a regular expression, or with ``literal`` a text, is found, without overlap; int64."""
        _check(pattern, literal)
        return call("str.count", self._expr, pattern=pattern, literal=literal)

    def find(self, text: str) -> Expr:
        """The position of the first occurrence of a text, -1 if there is none; int64."""
        return call("str.find", self._expr, text=text)

    def to_date(self, format: str = "%Y-%m-%d", strict: bool = True) -> Expr:
        """Parse dates; with ``strict=False`` what doesn't parse is null."""
        return call("str.to_date", self._expr, format=format, strict=strict)

    def to_datetime(self, format: str | None = None, strict: bool = True) -> Expr:
        """Parse timestamps.

        Args:
            format: as for `datetime.strptime`, with ``%f`` only as ``.%f`` after ``%S``; None is ISO 8601.
            strict: True raises on a text that doesn't parse, False makes it null.

        Returns:
            A timestamp[us] expression; with ``%z`` in the format, in UTC.
        """
        return call("str.to_datetime", self._expr, format=format, strict=strict)


def _check(pattern: str, literal: bool) -> None:
    from .string_kernels import check_pattern

    if not literal and isinstance(pattern, str):
        check_pattern(pattern)
