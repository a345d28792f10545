"""Early checks of objectives: penalties, features, and targets that nothing can be learnt from."""

from __future__ import annotations

import math

from ...errors import ParameterError, TypeMismatchError
from ..training.program import DataInfo


def check_penalty(label: str, **penalties: float) -> None:
    """Raise unless all penalties are finite numbers of at least 0."""
    for name, value in penalties.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ParameterError(f"{label}({name}={value!r}): a penalty is a number, 0 or more.")


def check_width(label: str, info: DataInfo) -> None:
    """Raise unless there are features of numbers and a target."""
    if info.width < 1:
        raise ParameterError(f"{label}: there are no features. Name at least one column in features=[...].")
    if "y" not in info.columns:
        raise ParameterError(f"{label} learns from a target. Give target='column'.")
    shape, dtype = info.columns["y"]
    if shape or dtype.startswith(("<U", "object", "datetime", "timedelta")):
        raise TypeMismatchError(
            f"{label}: the target is {dtype}{list(shape) or ''}, and must be one number a row."
        )


def check_classes(label: str, info: DataInfo, classes: int) -> None:
    """Raise unless the target can be a class, 0 to ``classes`` - 1, and isn't the same in all rows."""
    if info.target_range is None:
        return
    low, high = info.target_range
    wanted = "False and True, or 0 and 1" if classes == 2 else f"whole numbers, 0 to {classes - 1}"
    if low < 0 or high > classes - 1 or low != int(low) or high != int(high):
        more = f" There seem to be {int(high) + 1} classes." if low >= 0 and high > classes - 1 else ""
        raise ParameterError(
            f"{label}: the target's values go from {low:g} to {high:g}, and must be {wanted}.{more} "
            "Number the classes first, as with hw.prep.Ordinal(column) or hw.when(...).then(...)."
        )
    if low == high and info.rows > 1:
        raise ParameterError(
            f"{label}: the target is {low:g} in all {info.rows} training rows, so there is nothing to tell "
            "apart. Has a filter left only one class, or is it the wrong column?"
        )
