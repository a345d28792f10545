"""Optimizer: a pair of pure functions that start a state and make a step; chain, which puts changes before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import ParameterError
from ..backend import Array
from .checks import Rate, plain, rate_at, written
from .parts import Arrays, Part, Steps


@dataclass(frozen=True, repr=False, eq=False)
class Optimizer:
    """A rule that makes new parameters out of gradients, as in optax: two pure functions and what they keep to.

    The functions of this package make one; so can you, with functions of your own.

    Args:
        name: in texts and in the lineage key.
        init: from parameters, as a flat dict of arrays, to a state, a flat dict of arrays too.
        update: from ``(grads, state, params, step)`` to ``(params, state)``. Steps count from 0. It returns new
            dicts; it may write to the arrays of ``params`` and ``state`` and return them. So whoever wants
            earlier ones back keeps a copy. Gradients are left as they are.
        elementwise: each element of the results depends on the same element of the inputs, and on the step,
            alone, and every array of the state has the shape of its parameter. A vector can then be updated in slices.
        options: what it was called with.
        lr: the learning rate, a number or a schedule, if it has one.

    Example:
        >>> import numpy as np
        >>> optimizer = Optimizer(
        ...     "sign", lambda params: {}, lambda grads, state, params, step: (
        ...         {name: params[name] - 0.1 * np.sign(grads[name]) for name in params}, state
        ...     ), elementwise=True,
        ... )
        >>> params, state = optimizer.update({"w": np.array([3.0, -0.5])}, {}, {"w": np.array([1.0, 1.0])}, 0)
        >>> params["w"].tolist()
        [0.9, 1.1]
    """

    name: str
    init: Callable[[dict[str, Array]], dict[str, Array]]
    update: Callable[[Arrays, Arrays, Arrays, int], tuple[dict[str, Array], dict[str, Array]]]
    elementwise: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: Rate | None = None

    def learning_rate(self, step: int) -> float | None:
        """Return the learning rate at a step, counted from 0; None if it has none that is known."""
        return None if self.lr is None else rate_at(self.lr, int(step))

    def parameters(self) -> Any:
        """Return what decides its results, for the lineage key."""
        own = isinstance(getattr(self.update, "__self__", None), Steps)
        functions = () if own else (self.init, self.update)
        return (self.name, _options(self.options), *functions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Optimizer) and self.parameters() == other.parameters()

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return _call(self.name, self.options)


@dataclass(frozen=True, repr=False)
class Transformation:
    """A change of gradients (or of parameters) before an optimizer's step, for `chain`.

    Args:
        name: in texts and in the lineage key.
        part: its arithmetic.
        options: what it was called with.
    """

    name: str
    part: Part
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def elementwise(self) -> bool:
        """Whether what it does to an element depends on the same element, and on the step, alone."""
        return self.part.elementwise

    def parameters(self) -> Any:
        """Return what decides its results, for the lineage key."""
        return (self.name, _options(self.options))

    def __repr__(self) -> str:
        return _call(self.name, self.options)


def chain(*parts: Transformation | Optimizer) -> Optimizer:
    """Put changes of the gradients before an optimizer; they are made in the order written.

    Args:
        parts: transformations, as `clip_by_global_norm`, and last an optimizer.

    Returns:
        An optimizer. It is elementwise if all parts are.

    Raises:
        ParameterError: the optimizer isn't last, or is missing.

    Example:
        >>> import headwater as hw
        >>> hw.optim.chain(hw.optim.clip_by_value(1.0), hw.optim.sgd(0.1))
        chain(clip_by_value(limit=1.0), sgd(lr=0.1, l2=0.0))
    """
    optimizer = parts[-1] if parts else None
    if not isinstance(optimizer, Optimizer):
        raise ParameterError(
            f"chain() ends with {optimizer!r}: put an optimizer last, as chain(clip_by_global_norm(1.0), adam(0.001))."
        )
    before = []
    for part in parts[:-1]:
        if not isinstance(part, Transformation):
            hint = "only one optimizer, and it stands last" if isinstance(part, Optimizer) else _BEFORE
            raise ParameterError(f"chain() takes {hint}; before {optimizer.name}() stands {part!r}.")
        if part.name == "weight_decay" and optimizer.lr is None:
            raise ParameterError(
                f"chain({part!r}, {optimizer!r}): decoupled decay goes by the learning rate, and this optimizer "
                "names none. Give it one, Optimizer(…, lr=…), or write l2(…)."
            )
        before.append(part.part)
    own = getattr(optimizer.update, "__self__", None)
    if isinstance(own, Steps):
        steps = Steps((*before, *own.parts), own.lr, own.last)
    else:
        steps = Steps(tuple(before), 0.0 if optimizer.lr is None else optimizer.lr, optimizer)
    return Optimizer("chain", steps.init, steps.update, steps.elementwise, {"parts": parts}, optimizer.lr)


_BEFORE = "clip_by_global_norm(), clip_by_value(), l2() and weight_decay() before the optimizer"


def built(name: str, lr: Rate, parts: tuple[Part, ...], options: Mapping[str, Any]) -> Optimizer:
    """Make an optimizer of parts.

    Args:
        name: the function that the user called.
        lr: the learning rate, checked.
        parts: in the order in which they run.
        options: of the call, besides the learning rate.
    """
    steps = Steps(parts, lr)
    return Optimizer(name, steps.init, steps.update, steps.elementwise, {"lr": lr, **options}, lr)


def _options(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, plain(value)) for name, value in options.items())


def _call(name: str, options: Mapping[str, Any]) -> str:
    if name == "chain":
        return f"chain({', '.join(map(repr, options['parts']))})"
    return written(name, options)
