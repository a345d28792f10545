"""MLP: a multilayer perceptron, with backpropagation written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...errors import ParameterError, did_you_mean
from ..backend import Array, array_namespace
from ..training.program import Batch, DataInfo, Tree
from .checks import check_penalty, check_width
from .losses import features, mean_and_scale, mean_and_slope, sigmoid, sum_all, sum_rows
from .objective import Objective
from .tasks import make_task


class MLP(Objective):
    """Fully connected layers with an activation between them.

    Parameters are ``{"layers": [{"weights": (in, out), "bias": (out,)}, …]}``. Weights start normal with
    variance 2 / in (He et al. 2015) for relu, and 1 / in (LeCun et al. 1998) for others; biases at 0.

    Args:
        hidden: widths of the hidden layers, as ``(128, 64)``.
        task: "regression", "binary" or "classes", with the losses of the linear models.
        classes: how many, for "classes".
        activation: "relu", "tanh", "sigmoid" or "gelu" (its tanh form).
        dropout: share of hidden activations set to 0 in training, others scaled up (Srivastava et al. 2014).
        l2: penalty of the weights, ``0.5 * l2 * sum of squares``; of no biases.

    Example:
        >>> MLP(hidden=(128,), task="classes", classes=10).output()[0].name
        'prediction'
    """

    trusted = True

    def __init__(
        self,
        hidden: Sequence[int],
        task: Literal["regression", "binary", "classes"] = "regression",
        classes: int | None = None,
        activation: Literal["relu", "tanh", "sigmoid", "gelu"] = "relu",
        dropout: float = 0.0,
        l2: float = 0.0,
    ):
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        if not all(isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in widths):
            raise ParameterError(
                f"MLP(hidden={hidden!r}): give the widths of the hidden layers, as (128, 64)."
            )
        if activation not in _ACTIVATIONS:
            raise ParameterError(f"MLP(activation={activation!r}): {did_you_mean(activation, _ACTIVATIONS)}")
        if not 0 <= dropout < 1:
            raise ParameterError(f"MLP(dropout={dropout!r}): give a share of at least 0 and less than 1.")
        check_penalty("MLP", l2=l2)
        self.hidden, self.task, self.classes = tuple(widths), task, classes
        self.activation, self.dropout, self.l2 = activation, float(dropout), float(l2)
        self._task = make_task("MLP", task, classes)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether there is dropout."""
        return self.dropout > 0

    def check(self, info: DataInfo) -> None:
        check_width(self.label, info)
        self._task.check(self.label, info)

    def init(self, rng: np.random.Generator, info: DataInfo) -> Tree:
        xp = array_namespace()
        widths = [info.width, *self.hidden, self._task.width or 1]
        gain = 2.0 if self.activation == "relu" else 1.0
        layers = []
        for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:])):
            variance = (gain if i < len(self.hidden) else 1.0) / fan_in
            weights = rng.standard_normal((fan_in, fan_out), dtype=np.float32) * math.sqrt(variance)
            layers.append(
                {"weights": xp.asarray(weights.astype(info.dtype)), "bias": xp.zeros(fan_out, info.dtype)}
            )
        return {"layers": layers}

    def value_and_grad(
        self, params: Tree, batch: Batch, rng: np.random.Generator
    ) -> tuple[float, Tree, dict[str, float]]:
        """Return the penalized mean loss and its gradient, with dropout."""
        xp = array_namespace()
        layers = params["layers"]
        activate, slope_of = _ACTIVATIONS[self.activation]
        h = features(batch, layers[0]["weights"].dtype)
        kept = []  # of each layer: its input, and what its derivative is multiplied by on the way back
        factor = None
        for layer in layers[:-1]:
            kept.append((h, factor))
            z = h @ layer["weights"]
            z += layer["bias"]
            h = activate(z)
            factor = slope_of(z, h)
            if self.dropout:
                mask = rng.random(h.shape, dtype=np.float32) >= self.dropout
                scaled = xp.asarray(mask.astype(h.dtype) / h.dtype.type(1 - self.dropout))
                h, factor = h * scaled, factor * scaled
        kept.append((h, factor))
        z = self._outputs(h, layers[-1])
        loss, delta = mean_and_slope(self._task.row_losses, z, batch["y"], batch.get("weight"))
        delta = delta if delta.ndim == 2 else delta[:, None]
        grads: list[dict[str, Array]] = []
        for layer, (h, factor) in zip(reversed(layers), reversed(kept)):
            grads.append({"weights": h.T @ delta, "bias": sum_rows(delta).astype(delta.dtype, copy=False)})
            if factor is not None:
                delta = delta @ layer["weights"].T
                delta *= factor
        grads.reverse()
        if self.l2:
            for layer, grad in zip(layers, grads):
                loss += 0.5 * self.l2 * sum_all(xp.square(layer["weights"]))
                grad["weights"] += self.l2 * layer["weights"]
        return loss, {"layers": grads}, {}

    def loss(self, params: Tree, batch: Batch, rng: Any = None) -> tuple[float, dict[str, float]]:
        """Return the mean loss without penalty and dropout."""
        losses, _ = self._task.row_losses(self._forward(params, batch), batch["y"])
        return mean_and_scale(losses, None, batch.get("weight"))[0], {}

    def predict(self, params: Tree, batch: Batch) -> dict[str, Array]:
        return self._task.columns(self._forward(params, batch))

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        return self._task.fields()

    def _forward(self, params: Tree, batch: Batch) -> Array:
        activate, _ = _ACTIVATIONS[self.activation]
        *hidden, last = params["layers"]
        h = features(batch, last["weights"].dtype)
        for layer in hidden:
            z = h @ layer["weights"]
            z += layer["bias"]
            h = activate(z)
        return self._outputs(h, last)

    def _outputs(self, h: Array, layer: dict[str, Array]) -> Array:
        z = h @ layer["weights"]
        z += layer["bias"]
        return z if self._task.width else z[:, 0]


def _relu(z: Array) -> Array:
    return array_namespace().maximum(z, 0)


def _relu_slope(z: Array, h: Array) -> Array:
    return (z > 0).astype(z.dtype)


def _tanh(z: Array) -> Array:
    return array_namespace().tanh(z)


def _tanh_slope(z: Array, h: Array) -> Array:
    return 1 - h * h


def _sigmoid_slope(z: Array, h: Array) -> Array:
    return h * (1 - h)


_A, _B = math.sqrt(2 / math.pi), 0.044715


def _gelu(z: Array) -> Array:
    return 0.5 * z * (1 + array_namespace().tanh(_A * (z + _B * z * z * z)))


def _gelu_slope(z: Array, h: Array) -> Array:
    t = array_namespace().tanh(_A * (z + _B * z * z * z))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _A * (1 + 3 * _B * z * z)


#: name to the function, and its derivative from its argument and value
_ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]] = {
    "relu": (_relu, _relu_slope),
    "tanh": (_tanh, _tanh_slope),
    "sigmoid": (sigmoid, _sigmoid_slope),
    "gelu": (_gelu, _gelu_slope),
}
