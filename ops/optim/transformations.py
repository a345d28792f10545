"""Changes of gradients before an optimizer's step: clipping, L2 and decoupled weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import Array
from ..device.arrays.optimizer_steps import Stage
from .checks import real
from .norms import global_norm
from .optimizer import Transformation
from .parts import Arrays, Block, Part, Scaling


def clip_by_global_norm(max_norm: float) -> Transformation:
    """Scale all gradients down together if their norm is above a bound.

    The norm is that of all elements of all parameters, and the factor is ``max_norm / (norm + 1e-6)``, as in
    ``torch.nn.utils.clip_grad_norm_``. It is summed in a fixed order (`headwater.ops.optim.norms`). It needs all
    gradients, so an optimizer behind it isn't elementwise any more.

    Args:
        max_norm: the bound, above 0.

    Raises:
        ParameterError: a bound out of range.

    Example:
        >>> import numpy as np
        >>> from headwater.ops.optim import chain, sgd
        >>> optimizer = chain(clip_by_global_norm(1.0), sgd(1.0))
        >>> params, _ = optimizer.update({"w": np.array([30.0, 40.0])}, {}, {"w": np.zeros(2)}, 0)
        >>> params["w"].round(3).tolist()
        [-0.6, -0.8]
    """
    max_norm = real(max_norm, "clip_by_global_norm", "max_norm", above=0.0)
    return Transformation("clip_by_global_norm", ClipNorm(max_norm), {"max_norm": max_norm})


def clip_by_value(limit: float) -> Transformation:
    """Bring each element of the gradients between ``-limit`` and ``limit``; NaN stays NaN.

    Args:
        limit: above 0.

    Raises:
        ParameterError: a limit out of range.
    """
    limit = real(limit, "clip_by_value", "limit", above=0.0)
    return Transformation("clip_by_value", ClipValue(limit), {"limit": limit})


def l2(amount: float) -> Transformation:
    """Add ``amount`` times the parameters to the gradients: that of ``amount / 2 * sum(params ** 2)``.

    It is what ``weight_decay`` means in ``torch.optim.SGD`` and ``Adam``. An adaptive optimizer divides it by the size
    of the gradients like the rest; `weight_decay` is what isn't so divided.

    Args:
        amount: 0 or more.

    Raises:
        ParameterError: an amount out of range.
    """
    amount = real(amount, "l2", "amount")
    return Transformation("l2", AddParams(amount), {"amount": amount})


def weight_decay(amount: float) -> Transformation:
    """Shrink the parameters by ``lr * amount`` of themselves at each step, apart from the gradients.

    Before `adam` it makes `adamw`, the same bits.

    Args:
        amount: 0 or more, times the optimizer's learning rate at the step.

    Raises:
        ParameterError: an amount out of range.

    Source: I. Loshchilov and F. Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """
    amount = real(amount, "weight_decay", "amount")
    return Transformation("weight_decay", Decay(amount), {"amount": amount})


@dataclass(frozen=True)
class ClipNorm(Scaling):
    """Scales all gradients by one number, at most 1."""

    max_norm: float

    def factors(self, grads: Arrays, params: Arrays) -> dict[str, float]:
        factor = self.max_norm / (global_norm({name: grads[name] for name in params}) + 1e-6)
        return dict.fromkeys(params, 1.0 if factor > 1.0 else factor)  # NaN stays NaN


@dataclass(frozen=True)
class ClipValue(Part):
    """Clips a gradient."""

    limit: float

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("CLIP", (self.limit,))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        xp = block.xp
        block.grad = xp.minimum(
            xp.maximum(block.grad, -self.limit, out=block.room), self.limit, out=block.room
        )


@dataclass(frozen=True)
class AddParams(Part):
    """Adds the parameters, times a number, to the gradient."""

    amount: float

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("ADD_PARAMS", (self.amount,))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        xp, scratch = block.xp, block.scratch
        xp.multiply(block.param, self.amount, out=scratch)
        block.grad = xp.add(block.grad, scratch, out=block.room)


@dataclass(frozen=True)
class Decay(Part):
    """Shrinks the parameters."""

    amount: float

    def numbers(self, step: int, rate: float) -> tuple[float, ...]:
        return (1.0 - rate * self.amount,)

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("DECAY", (numbers[0],))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        block.xp.multiply(block.param, numbers[0], out=block.param)
