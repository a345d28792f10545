"""Device operators: kernels whose streams are of `DeviceTable`, and which kernel of the host each stands for.

A function that is registered for a kernel's class is given the kernel and the schemas of its inputs. It returns the
device operator that leaves the same rows in the same order, or says in words why there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from ..kernel import Broadcast, Context, Kernel
from .table import DeviceTable

DeviceStream = Iterator[DeviceTable]


class DeviceKernel(Kernel):
    """Computes one partition of an operator's output on a device.

    Narrow and wide inputs are streams of `DeviceTable`; a `Broadcast` is the same as on the host. How a stream is cut
    into tables depends on the rows alone, never on the device. The namespace is `backend.array_namespace`.
    """

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:  # type: ignore[override]
        """Compute the partition, streaming."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        return type(self).__name__.removeprefix("Device")


#: what to run in a kernel's place: an operator, or why there is none
Lowered = DeviceKernel | str
Lowerer = Callable[[Any, Sequence[pa.Schema]], Lowered]
_F = TypeVar("_F", bound=Lowerer)

_LOWERERS: dict[type[Kernel], Lowerer] = {}


def lowers(kind: type[Kernel]) -> Callable[[_F], _F]:
    """Return a decorator that registers what lowers a class of kernels."""

    def register(function: _F) -> _F:
        _LOWERERS[kind] = function
        return function

    return register


def device_kernel(kernel: Kernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Return the device operator for a kernel over inputs of these schemas, or why there is none."""
    lowerer = _LOWERERS.get(type(kernel))
    return f"{kernel.label} has no kernel there" if lowerer is None else lowerer(kernel, schemas)
