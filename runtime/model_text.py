"""A trained model as text: what it was trained for, the last figures, and its parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ops.training.model_table import FittedModel

#: most parameters that are listed, and most numbers of one that are shown
MOST_PARAMETERS = 8
MOST_NUMBERS = 6


def model_text(model: FittedModel) -> str:
    """Describe a model.

    Args:
        model: it.

    Returns:
        Lines without a newline at the end.

    Example:
        >>> history = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}]
        >>> from headwater.ops.training.model_table import decode_model, encode_model
        >>> params = {"weights": np.array([0.25, -1.0]), "intercept": np.array(0.5)}
        >>> about = {"objective": "LogisticRegression", "steps": 2}
        >>> print(model_text(decode_model(encode_model(params, {}, history, about))))
        LogisticRegression, 2 steps, loss 0.5
            weights (2,): 0.25 -1
            intercept: 0.5
    """
    about = model.about
    figures = [f"{name} {value:.6g}" for name, value in _last_figures(model).items()]
    lines = [", ".join([str(about.get("objective", "model")), f"{about.get('steps', 0):,} steps", *figures])]
    leaves = _leaves(model.params)
    lines += [f"    {name}: {_array_text(value)}" for name, value in leaves[:MOST_PARAMETERS]]
    if len(leaves) > MOST_PARAMETERS:
        lines.append(f"    … and {len(leaves) - MOST_PARAMETERS} more")
    return "\n".join(lines)


def _last_figures(model: FittedModel) -> dict[str, float]:
    """The last known loss and validation loss."""
    found: dict[str, float] = {}
    for name in ("loss", "validation_loss"):
        if name in model.history.column_names:
            known = [v for v in model.history[name].to_pylist() if v is not None and not math.isnan(v)]
            found |= {name.replace("_", " "): known[-1]} if known else {}
    return found


def _leaves(tree: Any, name: str = "") -> list[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(str(number), value) for number, value in enumerate(tree)]
    else:
        array = np.asarray(tree)
        return [(f"{name} {array.shape}" if array.shape else name, array)]
    return [leaf for key, value in items for leaf in _leaves(value, f"{name}.{key}" if name else key)]


def _array_text(array: np.ndarray) -> str:
    numbers = [f"{number:.4g}" for number in array.reshape(-1)[:MOST_NUMBERS].tolist()]
    return " ".join(numbers) + (" …" if array.size > MOST_NUMBERS else "")
