"""History: the figures of a training's steps and epochs, as arrays of a size that is known at the start.

A step writes only its own row, so that a step that is made again writes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

#: most steps that are kept; of more, every second, third and so on
MOST_STEPS = 10_000
STEP_FIGURES = ("step", "epoch", "loss", "lr", "grad_norm")
EPOCH_FIGURES = ("step", "epoch", "loss", "validation_loss")


def new_history(total: int, steps_per_epoch: int, metrics: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return a history without entries.

    Args:
        total: steps of the training.
        steps_per_epoch: of them in an epoch.
        metrics: names of further figures of a step.

    Returns:
        "steps" and "epochs", NaN all over.
    """
    steps, epochs = -(-total // stride(total)), -(-total // steps_per_epoch)
    return {
        "steps": np.full((steps, len(STEP_FIGURES) + len(metrics)), np.nan),
        "epochs": np.full((epochs, len(EPOCH_FIGURES)), np.nan),
    }


def stride(total: int) -> int:
    """Return which steps are kept: every how many-th.

    Example:
        >>> stride(500), stride(25_000)
        (1, 3)
    """
    return max(1, -(-total // MOST_STEPS))


def record_step(
    history: dict[str, np.ndarray], step: int, epoch: int, figures: Iterable[float], total: int
) -> None:
    """Write a step, counted from 1, if it is one that is kept; the last one always is."""
    every = stride(total)
    if step % every == 0 or step == total:
        history["steps"][-(-step // every) - 1] = [step, epoch, *figures]


def record_epoch(
    history: dict[str, np.ndarray],
    step: int,
    steps_per_epoch: int,
    loss: float | None = None,
    validation: float | None = None,
) -> None:
    """Write the mean loss of the epoch that ended with a step, or its validation loss."""
    epoch = -(-step // steps_per_epoch)
    row = history["epochs"][epoch - 1]
    row[:2] = step, epoch
    if loss is not None:
        row[2] = loss
    if validation is not None:
        row[3] = validation


def read_history(
    history: dict[str, np.ndarray], metrics: Sequence[str] = ()
) -> dict[str, dict[str, list[Any]]]:
    """Return the rows that were written, as lists by name."""
    tables = (("steps", (*STEP_FIGURES, *metrics)), ("epochs", EPOCH_FIGURES))
    found = {}
    for table, names in tables:
        rows = history[table][~np.isnan(history[table][:, 0])]
        found[table] = {name: rows[:, i].tolist() for i, name in enumerate(names)}
        for name in ("step", "epoch"):
            found[table][name] = [int(value) for value in found[table][name]]
    return found
