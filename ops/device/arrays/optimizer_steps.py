"""Optimizer steps: an optimizer's whole arithmetic on each element in one pass over its arrays.

What the steps are is said by name, as in ``cuda/optimizer_steps.cu``: changes of the gradient or the parameter first
("SCALE", "CLIP", "ADD_PARAMS", "DECAY"; one number each), then a step ("DESCENT", "MOMENTUM", "NESTEROV", "ADAGRAD",
"ADAM", "LION"), or what leaves a gradient for later ("DIRECTION", "KEEP"). The twins on the host are the parts in
`headwater.ops.optim`, with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ...backend import Array
from ..modules import kernel, launch

#: changes that one pass has room for, and numbers of a last step
MOST_CHANGES, MOST_NUMBERS = 3, 5
#: last steps that leave the parameters alone, and write the gradient
_LEAVE = ("DIRECTION", "KEEP")
#: steps that stand last, and only there
STEPS = frozenset(["DESCENT", "MOMENTUM", "NESTEROV", "ADAGRAD", "ADAM", "LION", "DIRECTION"])
_PLACES = ("FIRST", "SECOND", "THIRD")


@dataclass(frozen=True)
class Stage:
    """One part of a step.

    Attributes:
        name: as in the source.
        numbers: what it goes by; they are rounded to the parameters' type.
    """

    name: str
    numbers: tuple[float, ...] = ()


def optimizer_step(
    changes: Sequence[Stage],
    last: Stage,
    params: Array,
    grads: Array,
    slots: Sequence[Array],
    kept: Array | None,
    xp: ModuleType,
) -> None:
    """Make a step in place, on a device.

    Traffic, in items an element: each array is read once and what changes is written once. SGD reads 2 and writes 1,
    momentum, Nesterov, Adagrad and Lion 3 and 2, Adam and AdamW 4 and 3; so Adam in float32 moves 28 bytes.

    Args:
        changes: at most `MOST_CHANGES`, in order.
        last: the step.
        params: shape (n,), float32 or float64, without gaps; changed in place.
        grads: shape (n,), of the same dtype, without gaps; left as it is.
        slots: the step's state arrays, at most two, like ``params``; changed in place.
        kept: gets the gradient as it was left; None where it isn't wanted.
        xp: CuPy.
    """
    dtype = params.dtype.type
    arrays = [params, grads, *slots, *([] if kept is None else [kept])]
    width = 16 // params.dtype.itemsize
    if any(array.data.ptr % 16 for array in arrays):
        width = 1
    macros = {place: change.name for place, change in zip(_PLACES, changes)}
    step = kernel(
        xp,
        "optimizer_steps",
        "optimizer_step",
        REAL="float" if params.dtype == np.float32 else "double",
        LANES=width,
        LAST=last.name,
        SLOTS=len(slots),
        **macros,
    )
    single = [change.numbers[0] for change in changes] + [0.0] * (MOST_CHANGES - len(changes))
    numbers = [*last.numbers] + [0.0] * (MOST_NUMBERS - len(last.numbers))
    moves = last.name not in _LEAVE or any(change.name == "DECAY" for change in changes)
    args = [
        params,
        grads,
        slots[0] if slots else params,
        slots[1] if len(slots) > 1 else params,
        params if kept is None else kept,
        np.int32(moves),
        np.int32(kept is not None),
        np.int64(params.size),
        *(dtype(number) for number in (*single, *numbers)),
    ]
    launch(step, int(params.size), args, each=width)
