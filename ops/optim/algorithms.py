"""The optimizers: SGD, momentum, Nesterov, Adagrad, Adam, AdamW, Lion and LAMB.

Numbers are those of PyTorch's optimizers of the same names, up to rounding. State is of the parameters' own type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import Array
from ..device.arrays.optimizer_steps import Stage
from .checks import Rate, pair, rate, real
from .norms import global_norm
from .optimizer import Optimizer, built
from .parts import Arrays, Block, Part, Scaling
from .transformations import AddParams, Decay


def sgd(lr: Rate, *, l2: float = 0.0) -> Optimizer:
    """Stochastic gradient descent: ``params -= lr * grads``.

    Args:
        lr: the learning rate, a number or a schedule.
        l2: is added to the gradients times the parameters; ``weight_decay`` of ``torch.optim.SGD``.

    Raises:
        ParameterError: a parameter out of range.

    Example:
        >>> import numpy as np
        >>> params, state = sgd(0.5).update({"w": np.array([2.0])}, {}, {"w": np.array([1.0])}, step=0)
        >>> params["w"].tolist()
        [0.0]
    """
    lr, l2 = rate(lr, "sgd"), real(l2, "sgd", "l2")
    return built("sgd", lr, (*_l2(l2), Descent()), {"l2": l2})


def momentum(lr: Rate, decay: float = 0.9, *, l2: float = 0.0) -> Optimizer:
    """Gradient descent along a decaying sum of gradients; ``torch.optim.SGD(momentum=decay)``, without dampening.

    Args:
        lr: the learning rate, a number or a schedule.
        decay: what remains of the sum at each step, at least 0 and below 1.
        l2: is added to the gradients times the parameters.

    Raises:
        ParameterError: a parameter out of range.
    """
    lr, decay, l2 = (
        rate(lr, "momentum"),
        real(decay, "momentum", "decay", below=1.0),
        real(l2, "momentum", "l2"),
    )
    return built("momentum", lr, (*_l2(l2), Momentum(decay, ahead=False)), {"decay": decay, "l2": l2})


def nesterov(lr: Rate, decay: float = 0.9, *, l2: float = 0.0) -> Optimizer:
    """Momentum that looks one step ahead; ``torch.optim.SGD(momentum=decay, nesterov=True)``.

    Args:
        lr: the learning rate, a number or a schedule.
        decay: what remains of the sum at each step, at least 0 and below 1.
        l2: is added to the gradients times the parameters.

    Raises:
        ParameterError: a parameter out of range.

    Source: I. Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.
    """
    lr, decay, l2 = (
        rate(lr, "nesterov"),
        real(decay, "nesterov", "decay", below=1.0),
        real(l2, "nesterov", "l2"),
    )
    return built("nesterov", lr, (*_l2(l2), Momentum(decay, ahead=True)), {"decay": decay, "l2": l2})


def adagrad(lr: Rate = 1e-2, *, initial: float = 0.0, eps: float = 1e-10, l2: float = 0.0) -> Optimizer:
    """Adagrad: each element's rate falls with the sum of its squared gradients; for sparse features.

    Args:
        lr: the learning rate, a number or a schedule.
        initial: what the sums of squares start as.
        eps: is added to their roots.
        l2: is added to the gradients times the parameters.

    Raises:
        ParameterError: a parameter out of range.

    Source: J. Duchi, E. Hazan and Y. Singer, Adaptive Subgradient Methods, JMLR 12 (2011).
    """
    lr, l2 = rate(lr, "adagrad"), real(l2, "adagrad", "l2")
    initial, eps = real(initial, "adagrad", "initial"), real(eps, "adagrad", "eps", above=0.0)
    options = {"initial": initial, "eps": eps, "l2": l2}
    return built("adagrad", lr, (*_l2(l2), Adagrad(initial, eps)), options)


def adam(
    lr: Rate = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, l2: float = 0.0
) -> Optimizer:
    """Adam: the mean of past gradients over the root of the mean of their squares.

    Args:
        lr: the learning rate, a number or a schedule.
        betas: what remains of the mean, and of the mean of squares, at each step; each at least 0 and below 1.
        eps: is added to the root.
        l2: is added to the gradients times the parameters; ``weight_decay`` of ``torch.optim.Adam``. `adamw` is
            usually better.

    Raises:
        ParameterError: a parameter out of range.

    Source: D. Kingma and J. Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.

    Example:
        >>> import numpy as np
        >>> optimizer = adam(0.1)
        >>> params = {"w": np.ones(2, np.float32)}
        >>> params, state = optimizer.update({"w": np.array([3, -7], np.float32)}, optimizer.init(params), params, 0)
        >>> params["w"].tolist(), sorted(state)
        ([0.8999999761581421, 1.100000023841858], ['m/w', 'v/w'])
    """
    lr, betas, l2 = rate(lr, "adam"), pair(betas, "adam", "betas"), real(l2, "adam", "l2")
    eps = real(eps, "adam", "eps", above=0.0)
    return built("adam", lr, (*_l2(l2), Adam(*betas, eps)), {"betas": betas, "eps": eps, "l2": l2})


def adamw(
    lr: Rate = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> Optimizer:
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``.

    Args:
        lr: the learning rate, a number or a schedule.
        betas: what remains of the mean, and of the mean of squares, at each step; each at least 0 and below 1.
        eps: is added to the root.
        weight_decay: times the learning rate, what the parameters lose of themselves at each step.

    Raises:
        ParameterError: a parameter out of range.

    Source: I. Loshchilov and F. Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """
    lr, betas, eps = rate(lr, "adamw"), pair(betas, "adamw", "betas"), real(eps, "adamw", "eps", above=0.0)
    amount = real(weight_decay, "adamw", "weight_decay")
    options = {"betas": betas, "eps": eps, "weight_decay": amount}
    return built("adamw", lr, (*_decay(amount), Adam(*betas, eps)), options)


def lion(
    lr: Rate = 1e-4, *, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
) -> Optimizer:
    """Lion: steps by the sign of a mean of gradients; one state array, and rates of a tenth of Adam's.

    Args:
        lr: the learning rate, a number or a schedule.
        betas: what the mean counts in the step, and what remains of it; each at least 0 and below 1.
        weight_decay: times the learning rate, what the parameters lose of themselves at each step.

    Raises:
        ParameterError: a parameter out of range.

    Source: X. Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023.
    """
    lr, betas = rate(lr, "lion"), pair(betas, "lion", "betas")
    amount = real(weight_decay, "lion", "weight_decay")
    return built("lion", lr, (*_decay(amount), Lion(*betas)), {"betas": betas, "weight_decay": amount})


def lamb(
    lr: Rate = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Optimizer:
    """LAMB: Adam's step, scaled for each parameter array to the norm of that array; for very large batches.

    It needs whole arrays, so it isn't elementwise.

    Args:
        lr: the learning rate, a number or a schedule.
        betas: what remains of the mean, and of the mean of squares, at each step; each at least 0 and below 1.
        eps: is added to the root.
        weight_decay: is added to Adam's step times the parameters, before the scaling.

    Raises:
        ParameterError: a parameter out of range.

    Source: Y. You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, ICLR 2020,
    with the identity for its function of the norm.
    """
    lr, betas, eps = rate(lr, "lamb"), pair(betas, "lamb", "betas"), real(eps, "lamb", "eps", above=0.0)
    amount = real(weight_decay, "lamb", "weight_decay")
    parts = (Direction(*betas, eps), *_l2(amount), Trust(), Descent())
    return built("lamb", lr, parts, {"betas": betas, "eps": eps, "weight_decay": amount})


def _l2(amount: float) -> tuple[Part, ...]:
    return (AddParams(amount),) if amount else ()


def _decay(amount: float) -> tuple[Part, ...]:
    return (Decay(amount),) if amount else ()


@dataclass(frozen=True)
class Descent(Part):
    """params -= lr * grads"""

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("DESCENT", (numbers[0],))

    def numbers(self, step: int, rate: float) -> tuple[float, ...]:
        return (rate,)

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        xp, scratch = block.xp, block.scratch
        xp.multiply(block.grad, numbers[0], out=scratch)
        xp.subtract(block.param, scratch, out=block.param)


@dataclass(frozen=True)
class Momentum(Part):
    """Descent along a decaying sum of gradients; ahead, along what the sum will be at the next step."""

    decay: float
    ahead: bool

    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0}

    def numbers(self, step: int, rate: float) -> tuple[float, ...]:
        return (rate,)

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("NESTEROV" if self.ahead else "MOMENTUM", (numbers[0], self.decay))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        xp, scratch, (total,) = block.xp, block.scratch, state
        xp.multiply(total, self.decay, out=total)
        xp.add(total, block.grad, out=total)
        if self.ahead:
            xp.multiply(total, self.decay, out=scratch)
            xp.add(scratch, block.grad, out=scratch)
            xp.multiply(scratch, numbers[0], out=scratch)
        else:
            xp.multiply(total, numbers[0], out=scratch)
        xp.subtract(block.param, scratch, out=block.param)


@dataclass(frozen=True)
class Adagrad(Part):
    """Descent, each element over the root of the sum of its squared gradients."""

    initial: float
    eps: float

    def slots(self) -> Mapping[str, float]:
        return {"squares": self.initial}

    def numbers(self, step: int, rate: float) -> tuple[float, ...]:
        return (rate,)

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("ADAGRAD", (numbers[0], self.eps))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        xp, scratch, (squares,) = block.xp, block.scratch, state
        xp.multiply(block.grad, block.grad, out=scratch)
        xp.add(squares, scratch, out=squares)
        xp.sqrt(squares, out=scratch)
        xp.add(scratch, self.eps, out=scratch)
        xp.divide(block.grad, scratch, out=scratch)
        xp.multiply(scratch, numbers[0], out=scratch)
        xp.subtract(block.param, scratch, out=block.param)


@dataclass(frozen=True)
class _Moments(Part):
    """Keeps the means of gradients and of their squares, without the correction of their start at 0.

    The corrected step ``lr * (m / c1) / (sqrt(v / c2) + eps)`` is, with ``r = sqrt(c2)``, the same as
    ``(lr * r / c1) * m / (sqrt(v) + eps * r)``: the corrections are numbers, so they cost nothing on the arrays.
    """

    first: float
    second: float
    eps: float

    def slots(self) -> Mapping[str, float]:
        return {"m": 0.0, "v": 0.0}

    def numbers(self, step: int, rate: float) -> tuple[float, ...]:
        root = math.sqrt(1.0 - self.second ** (step + 1))
        return rate * root / (1.0 - self.first ** (step + 1)), self.eps * root

    def constants(self, numbers: Sequence[float]) -> tuple[float, ...]:
        """Return what `direction` multiplies by, in the order of the device's step."""
        return (*numbers, 1.0 - self.first, self.second, 1.0 - self.second)

    def direction(self, block: Block, state: Sequence[Array], numbers: Sequence[float], out: Array) -> None:
        """Take the gradient into the means, and write the step to an array, which isn't the gradient's."""
        xp, grad, (mean, square) = block.xp, block.grad, state
        xp.subtract(grad, mean, out=out)
        xp.multiply(out, 1.0 - self.first, out=out)
        xp.add(mean, out, out=mean)
        xp.multiply(grad, grad, out=out)
        xp.multiply(out, 1.0 - self.second, out=out)
        xp.multiply(square, self.second, out=square)
        xp.add(square, out, out=square)
        xp.sqrt(square, out=out)
        xp.add(out, numbers[1], out=out)
        xp.divide(mean, out, out=out)
        xp.multiply(out, numbers[0], out=out)


@dataclass(frozen=True)
class Adam(_Moments):
    """Descent along Adam's direction."""

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("ADAM", self.constants(numbers))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        self.direction(block, state, numbers, block.scratch)
        block.xp.subtract(block.param, block.scratch, out=block.param)


@dataclass(frozen=True)
class Direction(_Moments):
    """Replaces the gradient by Adam's direction."""

    def numbers(self, step: int, rate: float) -> tuple[float, ...]:
        return super().numbers(step, 1.0)

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("DIRECTION", self.constants(numbers))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        self.direction(block, state, numbers, block.scratch)
        block.room[...] = block.scratch
        block.grad = block.room


@dataclass(frozen=True)
class Lion(Part):
    """Descent by the sign of a mean of gradients."""

    first: float
    second: float

    def slots(self) -> Mapping[str, float]:
        return {"m": 0.0}

    def numbers(self, step: int, rate: float) -> tuple[float, ...]:
        return (rate,)

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        tiny = float(np.finfo(dtype).smallest_subnormal)
        return Stage("LION", (numbers[0], 1.0 - self.first, 1.0 - self.second, tiny))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        xp, scratch, spare, (mean,) = block.xp, block.scratch, block.spare, state
        xp.subtract(block.grad, mean, out=spare)  # both means move towards the gradient
        xp.multiply(spare, 1.0 - self.first, out=scratch)
        xp.add(scratch, mean, out=scratch)
        xp.multiply(spare, 1.0 - self.second, out=spare)
        xp.add(mean, spare, out=mean)
        # the sign, as x / |x|: NumPy's sign() guesses a branch for each element, and takes three times as long
        xp.abs(scratch, out=spare)
        xp.maximum(spare, float(np.finfo(scratch.dtype).smallest_subnormal), out=spare)
        xp.divide(scratch, spare, out=scratch)
        xp.multiply(scratch, numbers[0], out=scratch)
        xp.subtract(block.param, scratch, out=block.param)


@dataclass(frozen=True)
class Trust(Scaling):
    """Scales each step to the norm of its parameter; a norm of 0, of either, leaves it."""

    def factors(self, grads: Arrays, params: Arrays) -> dict[str, float]:
        return {
            name: _ratio(global_norm({"": param}), global_norm({"": grads[name]}))
            for name, param in params.items()
        }


def _ratio(size: float, step: float) -> float:
    return size / step if size > 0.0 and step > 0.0 else 1.0
