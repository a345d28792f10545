"""HeadwaterError and its family: every error says what arrived, what was likely meant, what to write instead.

Each class also derives from the builtin that a caller would catch without knowing Headwater. All of
them pickle, because they travel from worker processes to the driver.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class HeadwaterError(Exception):
    """Base of every error Headwater raises on purpose.

    Attributes:
        report: the `headwater.runtime.report.RunReport` of the run that failed with it, if one did.
    """

    report: Any = None


class ColumnNotFoundError(HeadwaterError, KeyError):
    """A column that the schema at that point doesn't have."""

    __str__ = Exception.__str__  # KeyError would print the repr


class TypeMismatchError(HeadwaterError, TypeError):
    """An expression, operator or sink got a type it can't take."""


class ParameterError(HeadwaterError, ValueError):
    """An argument is out of range, contradictory or unknown."""


class SourceNotFoundError(HeadwaterError, FileNotFoundError):
    """A path that doesn't exist, or a glob that matches nothing."""


class SchemaMismatchError(HeadwaterError, ValueError):
    """Files of one dataset, or inputs of one operator, whose schemas differ."""


class CorruptFileError(HeadwaterError, ValueError):
    """A file that isn't what its format says, or is cut short."""


class BadRecordError(HeadwaterError, ValueError):
    """A CSV or JSON line that doesn't parse, under the policy `error`."""


class SinkExistsError(HeadwaterError, FileExistsError):
    """A sink whose destination already holds data."""


class UserFunctionError(HeadwaterError, RuntimeError):
    """A user function raised, or returned the wrong length or type."""


class SerializationError(HeadwaterError, TypeError):
    """A user function or object that can't be sent to the workers."""


class DiskFullError(HeadwaterError, OSError):
    """A node's scratch quota or disk, or a sink's disk, is full.

    Attributes:
        scratch: the node's scratch folder, if it is that; None for a sink's disk.
    """

    scratch: str | None = None


class ClusterError(HeadwaterError, RuntimeError):
    """The Dask cluster can't be reached, or has no workers."""


class VersionMismatchError(ClusterError):
    """A worker or scheduler runs versions that don't fit the driver's."""


class NonDeterministicError(HeadwaterError, RuntimeError):
    """A recomputed partition doesn't match the fingerprint of its first run."""


class RunFailedError(HeadwaterError, RuntimeError):
    """A run can't go on: a task failed too often, or data is lost for good."""


class FencedError(HeadwaterError, RuntimeError):
    """Another driver took the run over, so this one stops; what the other one does counts."""


class LeaseHeldError(HeadwaterError, RuntimeError):
    """A living driver holds the run; says who, where, since when, and what to do."""


class TrainingError(HeadwaterError, RuntimeError):
    """A training can't go on with what it is given."""


class DivergedError(TrainingError, ArithmeticError):
    """A loss or gradient isn't finite, or the parameters aren't any more."""


class PlanError(HeadwaterError, RuntimeError):
    """The planner produced or met a plan that breaks its own rules: a defect of Headwater."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a sentence with near matches of a name and the valid choices.

    Args:
        name: what arrived.
        choices: what would have been valid.

    Returns:
        ``"Did you mean 'fare'? Valid: 'fare', 'tip'."``; at most twenty choices are listed.

    Example:
        >>> did_you_mean("fair", ["fare", "tip"])
        "Did you mean 'fare'? Valid: 'fare', 'tip'."
    """
    valid = [str(choice) for choice in choices]
    folded = {choice.casefold(): choice for choice in reversed(valid)}
    near = [folded[m] for m in difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.55)]
    listed = ", ".join(repr(choice) for choice in valid[:20]) or "none"
    more = f" and {len(valid) - 20} more" if len(valid) > 20 else ""
    hint = f"Did you mean {' or '.join(repr(choice) for choice in near)}? " if near else ""
    return f"{hint}Valid: {listed}{more}."


def column_not_found(name: str, available: Iterable[str], where: str) -> ColumnNotFoundError:
    """Build the error for an unknown column, with near matches.

    Args:
        name: the column that was asked for.
        available: the columns there are, in schema order.
        where: the operator or expression that asked, as the user would recognise it.

    Returns:
        The error, not raised.

    Example:
        >>> str(column_not_found("fair", ["fare"], "filter(col('fair') > 0)"))
        "filter(col('fair') > 0): there is no column 'fair'. Did you mean 'fare'? Valid: 'fare'."
    """
    return ColumnNotFoundError(f"{where}: there is no column {name!r}. {did_you_mean(name, available)}")
