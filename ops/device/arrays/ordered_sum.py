"""Ordered sum: partial sums on a device are added in the order of a schedule, in one pass over them.

The order is that of the steps alone, so sums have the bits that the host gives them, whatever the device. Traffic:
each operand is read once and the sum written once, (operands + 1) * itemsize bytes for each element; intermediate
sums stay in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np

from ...backend import Array
from ..modules import generated, launch, on_device

#: left and right operands by place, and where their sum goes; as `Schedule.steps` of the collectives
Steps = Sequence[tuple[int, int, int]]

#: operands of one kernel; there is room for 4 KiB of arguments
_MOST = 256
#: elements of a thread, a block apart so that neighbours read neighbours
_EACH = 4
_THREADS = 256
#: what numbers are added as; unsigned wraps around as NumPy's integers do
_TYPES = {
    "f8": "double",
    "f4": "float",
    "8": "unsigned long long",
    "4": "unsigned",
    "2": "unsigned short",
    "1": "unsigned char",
}


def ordered_sum(steps: Steps, operands: Sequence[Array], xp: ModuleType) -> Array:
    """Add up vectors in a given order.

    Args:
        steps: (target, left, right) by number of a place: target becomes left + right. The places are the operands,
            then intermediate sums; the last target is the result. Without a step, the only operand is the result.
        operands: at least one; shape (n,), one dtype: integers, booleans (of which the sum is "or"), floats or complex.
        xp: their namespace.

    Returns:
        Shape (n,), the operands' dtype; the operand itself if there is no step, else a new array.

    Example:
        >>> ordered_sum([(3, 1, 2), (4, 0, 3)], [np.ones(2), np.ones(2), np.ones(2)], np).tolist()
        [3.0, 3.0]
    """
    if not steps:
        return operands[0]
    dtype, length = np.dtype(operands[0].dtype), int(operands[0].shape[0])
    if not on_device(xp) or dtype == np.float16 or len(operands) > _MOST:
        return _pairwise(steps, operands)
    views = [_plain(array, dtype) for array in operands]
    result = xp.empty(length, dtype)
    view = _plain(result, dtype)
    count = int(view.shape[0])
    function = generated(xp, source(tuple(map(tuple, steps)), len(operands), dtype.str[1:]), "ordered_sum")
    launch(function, count, (*views, view, np.int64(count)), threads=_THREADS, each=_EACH)
    return result


def _pairwise(steps: Steps, operands: Sequence[Array]) -> Array:
    """A pass for each step; the same additions."""
    places = dict(enumerate(operands))
    last = 0
    for target, left, right in steps:
        places[last := target] = places[left] + places[right]
    return places[last]


def _plain(array: Array, dtype: np.dtype) -> Array:
    """The same memory as numbers that a kernel adds: complex ones as pairs, integers as unsigned ones."""
    if dtype.kind == "c":
        return array.view(np.dtype(f"f{dtype.itemsize // 2}"))
    return array if dtype.kind in "fb" else array.view(np.dtype(f"u{dtype.itemsize}"))


@cache
def source(steps: tuple[tuple[int, int, int], ...], operands: int, dtype: str) -> str:
    """Return the kernel's source.

    Args:
        steps: as `ordered_sum`.
        operands: how many there are.
        dtype: as NumPy writes it without the order of bytes: "f4", "i8".
    """
    kind = f"f{int(dtype[1:]) // 2}" if dtype[0] == "c" else dtype
    number = _TYPES.get(kind) or _TYPES[dtype[1:]]
    plus = "|" if dtype[0] == "b" else "+"
    registers = sorted({target for target, _, _ in steps})

    def value(place: int) -> str:
        return f"x{place}[i]" if place < operands else f"s{place}"

    inputs = ", ".join(f"const {number}* __restrict__ x{place}" for place in range(operands))
    lines = [
        f"{value(target)} = ({number})({value(left)} {plus} {value(right)});" for target, left, right in steps
    ]
    body = "\n            ".join(lines)
    return f"""
extern "C" __global__ void ordered_sum({inputs}, {number}* __restrict__ out, long long count) {{
    long long first = (long long)blockIdx.x * blockDim.x * {_EACH} + threadIdx.x;
#pragma unroll
    for (int turn = 0; turn < {_EACH}; ++turn) {{
        long long i = first + (long long)turn * blockDim.x;
        if (i < count) {{
            {number} {", ".join(f"s{place}" for place in registers)};
            {body}
            out[i] = s{steps[-1][0]};
        }}
    }}
}}
"""
