"""Parts: what an optimizer is made of, and how their arithmetic runs over arrays, a block at a time.

An update reads and writes several arrays of the model's size, with a dozen operations on each element. Run
over whole arrays, each operation waits for memory. So all of them run on one block, which fits in the
processor's cache, before the next. Each is exact by IEEE 754 (+, -, *, /, square root, minimum), so that an
element's bits don't depend on the block or slice that it stands in.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import ParameterError, TypeMismatchError, did_you_mean
from ..backend import Array
from ..device.arrays.optimizer_steps import MOST_CHANGES, STEPS, Stage, optimizer_step
from .checks import Rate, rate_at

if TYPE_CHECKING:
    from .optimizer import Optimizer

Arrays = Mapping[str, Array]

#: elements that are updated at a time; on a device many more, only to bound what is allocated
BLOCK = 32768
DEVICE_BLOCK = 1 << 24


def namespace_of(array: Array) -> ModuleType:
    """Return the module that an array is of, ``numpy`` or ``cupy``."""
    return (
        np if isinstance(array, np.ndarray) else importlib.import_module(type(array).__module__.split(".")[0])
    )


class Block:
    """A block of one parameter: what parts read, and what they write to.

    Attributes:
        xp: the namespace.
        param: to be changed in place.
        grad: the gradient as the parts so far left it; to be read only, unless it is ``room``.
        room: where a part that changes the gradient writes it, before it sets ``grad`` to ``room``.
        scratch, spare: for anything.
    """

    __slots__ = ("grad", "param", "room", "scratch", "spare", "xp")

    def __init__(self, xp: ModuleType, param: Array, grad: Array, room: Array, scratch: Array, spare: Array):
        self.xp, self.param, self.grad = xp, param, grad
        self.room, self.scratch, self.spare = room, scratch, spare


class Part:
    """One change of the gradient or of the parameters, element by element.

    Attributes:
        elementwise: what it does to an element depends on the same element and on the step alone.
    """

    elementwise: ClassVar[bool] = True

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        """Return what `apply` is called in `headwater.ops.device.arrays.optimizer_steps`; None if it isn't there."""
        return None

    def slots(self) -> Mapping[str, float]:
        """Return the names of the state arrays it keeps of each parameter, and what they start as."""
        return {}

    def numbers(self, step: int, rate: float) -> tuple[float, ...]:
        """Return the Python floats that ``apply`` needs at a step with a learning rate."""
        return ()

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        """Change the block's parameter or gradient, and the same block of its state arrays."""
        raise NotImplementedError


class Scaling(Part):
    """A part that multiplies each gradient by a number, for which it must see all of them."""

    elementwise = False

    def factors(self, grads: Arrays, params: Arrays) -> dict[str, float]:
        """Return the number for each gradient."""
        raise NotImplementedError

    def stage(self, numbers: Sequence[float], dtype: np.dtype) -> Stage | None:
        return Stage("SCALE", (numbers[0],))

    def apply(self, block: Block, state: Sequence[Array], numbers: Sequence[float]) -> None:
        if numbers[0] != 1.0:
            block.grad = block.xp.multiply(block.grad, numbers[0], out=block.room)


@dataclass(frozen=True)
class Steps:
    """Parts in a row, and what they make of arrays: the ``init`` and ``update`` of an optimizer.

    Args:
        parts: in the order in which they run.
        lr: the learning rate.
        last: an optimizer of other make that takes the gradients as the parts leave them.
    """

    parts: tuple[Part, ...]
    lr: Rate
    last: Optimizer | None = None

    @property
    def elementwise(self) -> bool:
        """Whether each element depends on the same element of its inputs, and on the step, alone."""
        return all(part.elementwise for part in self.parts) and (self.last is None or self.last.elementwise)

    def init(self, params: Arrays) -> dict[str, Array]:
        """Return the state for some parameters: arrays of their shapes, named ``slot/parameter``."""
        for name, param in params.items():
            if str(getattr(param, "dtype", None)) not in ("float32", "float64"):
                raise TypeMismatchError(
                    f"the parameter {name!r} is {_kind(param)}. An optimizer takes arrays of floats: "
                    "float32 or float64."
                )
        state = dict(self.last.init(dict(params))) if self.last else {}
        for part in self.parts:
            for slot, value in part.slots().items():
                for name, param in params.items():
                    xp = namespace_of(param)
                    state[f"{slot}/{name}"] = xp.full(param.shape, value, param.dtype)
        return state

    def update(
        self, grads: Arrays, state: Arrays, params: Arrays, step: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the parameters and the state after a step; arrays of both are reused where they can be."""
        step = int(step)
        rate = rate_at(self.lr, step)
        params = {name: _own(array) for name, array in params.items()}
        state = {name: _own(array) for name, array in state.items()}
        _check(grads, params, state, self.parts)
        todo: list[_Todo] = []
        with np.errstate(all="ignore"):  # what isn't finite shows in the parameters; programs look there
            for part in self.parts:
                if isinstance(part, Scaling):
                    grads = _run(todo, grads, state, params, keep=True) if todo else grads
                    factors = part.factors(grads, params)
                    todo = [(part, {name: (factor,) for name, factor in factors.items()})]
                else:
                    todo.append((part, dict.fromkeys(params, part.numbers(step, rate))))
            if self.last is None:
                _run(todo, grads, state, params, keep=False)
                return params, state
            grads = _run(todo, grads, state, params, keep=True)
        return self.last.update(grads, state, params, step)


_Todo = tuple[Part, Mapping[str, tuple[float, ...]]]


def _run(todo: Sequence[_Todo], grads: Arrays, state: Arrays, params: Arrays, keep: bool) -> dict[str, Array]:
    """Run parts over all parameters; return the gradients as they leave them if they are to be kept."""
    kept = {}
    for name, param in params.items():
        xp = namespace_of(param)
        flat, grad = param.reshape(-1), grads[name].reshape(-1)
        if keep:
            kept[name] = xp.empty(param.shape, param.dtype)
        slots = [[state[f"{slot}/{name}"].reshape(-1) for slot in part.slots()] for part, _ in todo]
        if xp is not np and _run_fused(todo, name, flat, grad, slots, kept.get(name), xp):
            continue
        length = BLOCK if xp is np else DEVICE_BLOCK
        scratch = xp.empty((3, min(flat.size, length)), param.dtype)
        for begin in range(0, flat.size, length):
            here = slice(begin, begin + length)
            values = flat[here]
            room = kept[name].reshape(-1)[here] if keep else scratch[0, : values.size]
            block = Block(xp, values, grad[here], room, scratch[1, : values.size], scratch[2, : values.size])
            for (part, numbers), arrays in zip(todo, slots):
                part.apply(block, [array[here] for array in arrays], numbers[name])
            if keep and block.grad is not room:
                room[...] = block.grad
    return kept


def _run_fused(
    todo: Sequence[_Todo],
    name: str,
    param: Array,
    grad: Array,
    slots: Sequence[Sequence[Array]],
    kept: Array | None,
    xp: ModuleType,
) -> bool:
    """Run parts over one parameter on a device in one pass; False, and nothing done, if it takes more than one."""
    stages = [part.stage(numbers[name], param.dtype) for part, numbers in todo]
    known = [stage for stage in stages if stage is not None]
    if len(known) < len(stages) or grad.dtype != param.dtype:
        return False
    last: Stage = Stage("KEEP")
    arrays: Sequence[Array] = []
    if known and known[-1].name in STEPS:
        last, arrays = known.pop(), slots[-1]
    if len(known) > MOST_CHANGES or any(stage.name in STEPS for stage in known):
        return False
    kept = None if kept is None else kept.reshape(-1)
    optimizer_step(known, last, param, xp.ascontiguousarray(grad), arrays, kept, xp)
    return True


def _own(array: Array) -> Array:
    """Return an array that can be changed in place: itself, or a copy if it is read-only or has gaps."""
    flags = array.flags
    writable = getattr(flags, "writeable", True)  # CuPy's arrays always are
    return array if writable and flags.c_contiguous else namespace_of(array).array(array, order="C")


def _check(grads: Arrays, params: Arrays, state: Arrays, parts: Sequence[Part]) -> None:
    for name, param in params.items():
        if name not in grads:
            raise ParameterError(f"update(): there is no gradient of {name!r}. {did_you_mean(name, grads)}")
        if grads[name].shape != param.shape:
            raise ParameterError(
                f"update(): the gradient of {name!r} has shape {grads[name].shape}, its parameter {param.shape}. "
                "Both must be the same."
            )
        for part in parts:
            for slot in part.slots():
                held = state.get(f"{slot}/{name}")
                if held is None or held.shape != param.shape:
                    what = "isn't there" if held is None else f"has shape {held.shape}, not {param.shape}"
                    raise ParameterError(
                        f"update(): the state {slot!r} of {name!r} {what}. Give what init() or the last "
                        "update() returned."
                    )


def _kind(value: Any) -> str:
    return f"an array of {value.dtype}" if hasattr(value, "dtype") else f"of type {type(value).__name__}"
