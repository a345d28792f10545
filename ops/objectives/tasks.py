"""Tasks: what the output of a model stands for (a number, one of two classes, one of K), its loss and predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ...errors import ParameterError, did_you_mean
from ..backend import Array
from ..training.program import DataInfo
from .checks import check_classes
from .losses import (
    binary_columns,
    binary_fields,
    class_columns,
    class_fields,
    cross_entropy,
    log_loss,
    squared_error,
)

TASKS = ("regression", "binary", "classes")


@dataclass(frozen=True)
class Task:
    """What a model's output stands for.

    Attributes:
        name: "regression", "binary" or "classes".
        classes: how many for "classes", else None.
    """

    name: str
    classes: int | None = None

    @property
    def width(self) -> int | None:
        """Outputs of the model for a row; None is one, without an axis of its own."""
        return self.classes

    @property
    def row_losses(self) -> Callable[[Array, Array], tuple[Array, Array]]:
        """From outputs and targets to losses and their derivatives by the outputs, row by row."""
        return {"regression": squared_error, "binary": log_loss, "classes": cross_entropy}[self.name]

    def check(self, label: str, info: DataInfo) -> None:
        """Raise if the target can't be what the task says."""
        if self.name != "regression":
            check_classes(label, info, self.classes or 2)

    def columns(self, z: Array) -> dict[str, Array]:
        """Turn outputs, (rows,) or (rows, classes), into predicted columns."""
        if self.name == "regression":
            return {"prediction": z.astype("float64")}
        return binary_columns(z) if self.name == "binary" else class_columns(z)

    def fields(self) -> list[pa.Field]:
        """Return the fields of `columns`."""
        if self.name == "regression":
            return [pa.field("prediction", pa.float64())]
        return binary_fields() if self.classes is None else class_fields(self.classes)


def make_task(label: str, task: Any, classes: Any, names: tuple[str, ...] = TASKS) -> Task:
    """Return the task of a name.

    Args:
        label: the objective, for errors.
        task: one of ``names``.
        classes: how many for "classes"; None for others.
        names: that the objective takes.

    Raises:
        ParameterError: an unknown name, or classes that don't fit it.

    Example:
        >>> make_task("MLP", "classes", 10).width
        10
    """
    if task not in names:
        raise ParameterError(f"{label}(task={task!r}): {did_you_mean(str(task), names)}")
    if task == "classes":
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 2:
            raise ParameterError(
                f"{label}(task='classes', classes={classes!r}): say how many classes, as classes=10."
            )
        return Task(task, classes)
    if classes is not None:
        raise ParameterError(
            f"{label}(task={task!r}, classes={classes!r}): classes= goes with task='classes'; leave it out."
        )
    return Task(task)
