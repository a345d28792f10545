"""PlanOptions: the few numbers a plan depends on. Never the number of workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ParameterError, did_you_mean
from .device_costs import DeviceCosts

#: what `PlanOptions.device` may be
DEVICES = ("cpu", "auto", "gpu")


@dataclass(frozen=True)
class PlanOptions:
    """What the planner may be told.

    Attributes:
        partition_bytes: size in memory, in bytes, that a partition after an exchange aims at.
        broadcast_bytes: largest estimated side, in bytes, of a join that is broadcast.
        max_partitions: most partitions an exchange makes.
        disabled_rules: names of optimizer rules not to run, as "predicate_pushdown".
        device: what may run on a GPU: "cpu" nothing, "auto" what is expected to be faster there, "gpu" all that
            has a kernel there. A session sets it by what its workers have.
        device_costs: what "auto" goes by.

    Raises:
        ParameterError: there is no such device.
    """

    partition_bytes: int = 64 << 20
    broadcast_bytes: int = 32 << 20
    max_partitions: int = 10_000
    disabled_rules: frozenset[str] = frozenset()
    device: str = "cpu"
    device_costs: DeviceCosts = field(default_factory=DeviceCosts)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ParameterError(f"device={self.device!r}: {did_you_mean(str(self.device), DEVICES)}")
