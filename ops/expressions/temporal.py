"""Temporal: the functions of the namespace ``.dt``, on dates, timestamps, times and durations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .operators import call

if TYPE_CHECKING:
    from .expr import Expr


class TemporalNamespace:
    """Functions of temporal expressions; null for null.

    Parts are int64. Those of a timestamp with a time zone are its local time's. Move a time by adding a
    `datetime.timedelta`.
    """

    def __init__(self, expr: Any):
        self._expr = expr

    def year(self) -> Expr:
        """The year."""
        return call("dt.year", self._expr)

    def month(self) -> Expr:
        """The month, 1 to 12."""
        return call("dt.month", self._expr)

    def day(self) -> Expr:
        """The day of the month, 1 to 31."""
        return call("dt.day", self._expr)

    def hour(self) -> Expr:
        """The hour, 0 to 23."""
        return call("dt.hour", self._expr)

    def minute(self) -> Expr:
        """The minute, 0 to 59."""
        return call("dt.minute", self._expr)

    def second(self) -> Expr:
        """The second, 0 to 59."""
        return call("dt.second", self._expr)

    def millisecond(self) -> Expr:
        """The milliseconds since the last full second, 0 to 999."""
        return call("dt.millisecond", self._expr)

    def microsecond(self) -> Expr:
        """The microseconds since the last full second, 0 to 999,999, as in Python."""
        return call("dt.microsecond", self._expr)

    def nanosecond(self) -> Expr:
        """The nanoseconds since the last full second, 0 to 999,999,999."""
        return call("dt.nanosecond", self._expr)

    def weekday(self) -> Expr:
        """The day of the week: Monday is 0, Sunday 6, as in Python."""
        return call("dt.weekday", self._expr)

    def day_of_year(self) -> Expr:
        """The day of the year, 1 to 366."""
        return call("dt.day_of_year", self._expr)

    def week(self) -> Expr:
        """The ISO 8601 week, 1 to 53."""
        return call("dt.week", self._expr)

    def quarter(self) -> Expr:
        """The quarter, 1 to 4."""
        return call("dt.quarter", self._expr)

    def date(self) -> Expr:
        """The date, without the time."""
        return call("dt.date", self._expr)

    def truncate(self, every: str) -> Expr:
        """Round down to the start of a span of time.

        Args:
            every: a unit ("year", "quarter", "month", "week", "day", "hour", "minute", "second",
                "millisecond") or a number and a short unit: "15m", "6h", "1d", "1w", "3mo", "1q", "1y",
                "30s", "500ms". Weeks start on Monday.

        Returns:
            An expression of the same type.

        Raises:
            ParameterError: no such span.
        """
        from .temporal_kernels import parse_span

        truncated = call("dt.truncate", self._expr, every=every)
        parse_span(every)
        return truncated

    def strftime(self, format: str) -> Expr:
        """Format as `datetime.strftime` does in the C locale."""
        return call("dt.strftime", self._expr, format=format)

    def epoch(self, unit: str = "s") -> Expr:
        """Time since 1970-01-01 UTC in full units: "s", "ms", "us" or "ns"; int64."""
        from .temporal_kernels import check_unit

        return call("dt.epoch", self._expr, unit=check_unit(unit))

    def total_seconds(self) -> Expr:
        """A duration in seconds, float64."""
        return call("dt.total_seconds", self._expr)

    def days_between(self, end: Any) -> Expr:
        """The number of midnights from here to another date or timestamp; negative if that is earlier."""
        return call("dt.days_between", self._expr, end)
