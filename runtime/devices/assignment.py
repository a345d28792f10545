"""Assignment: which worker process of a node gets which device, decided before any of them begins. Pure.

A process is bound by ``CUDA_VISIBLE_DEVICES``, which CUDA reads once, when a process first uses it. That is how
dask-cuda binds its workers, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: which devices a process sees; the first of them is its own
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: among how many worker processes a device's memory is divided
SHARERS = "HEADWATER_DEVICE_SHARERS"
#: processes that a local cluster has where nobody says how many
USUAL_WORKERS = 4
#: what to do where a GPU was asked for, and no worker has one
NO_GPU_ADVICE = (
    "Join a cluster whose workers have one (`dask cuda worker ADDRESS`, `headwater worker ADDRESS`), "
    "or use Session(device='auto'), which takes what is there."
)


@dataclass(frozen=True)
class Binding:
    """What one worker process is given.

    Attributes:
        device: as ``CUDA_VISIBLE_DEVICES`` names it; None for a process without one.
        sharers: how many processes have the same device.
    """

    device: str | None = None
    sharers: int = 1

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that bind a process.

        Example:
            >>> Binding("2").environment["CUDA_VISIBLE_DEVICES"], Binding().environment["HEADWATER_BACKEND"]
            ('2', 'numpy')
        """
        if self.device is None:
            return {VISIBLE: "", "HEADWATER_BACKEND": "numpy"}
        return {VISIBLE: self.device, SHARERS: str(self.sharers)}


def bind(workers: int | None, devices: Sequence[str]) -> list[Binding]:
    """Decide what the worker processes of a node get.

    Args:
        workers: how many there are to be; they share the devices round robin. None is one for each device, and as
            many without one as it takes to have `USUAL_WORKERS` processes for what a device can't do.
        devices: of the node.

    Example:
        >>> [(b.device, b.sharers) for b in bind(3, ["0", "1"])]
        [('0', 2), ('1', 1), ('0', 2)]
        >>> [b.device for b in bind(None, ["0", "1"])]
        ['0', '1', None, None]
    """
    if not devices:
        return [Binding() for _ in range(workers or USUAL_WORKERS)]
    count = workers or len(devices)
    given = [devices[number % len(devices)] for number in range(count)]
    bound = [Binding(device, given.count(device)) for device in given]
    return bound + [Binding() for _ in range(0 if workers else USUAL_WORKERS - count)]
