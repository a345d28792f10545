"""DeviceCosts: what work is expected to take on a core and on a device, in seconds; measured numbers, and no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..ops.kernel import Kernel
from ..ops.partitioner import Partitioner

#: bytes of input a second that one core gets through, by operator, and by how rows are cut for an exchange;
#: `benchmarks/device_costs.py` measures them
HOST_RATES = {
    "Filter": 7.7e9,
    "Project": 14e9,
    "Transform": 1.0e9,
    "PartialAggregate": 1.6e9,
    "FinalAggregate": 0.9e9,
    "Distinct": 1.2e9,
    "Join": 3.1e9,
    "Sort": 0.19e9,
    "TopK": 0.29e9,
    "HashPartitioner": 0.9e9,
    "RangePartitioner": 0.44e9,
    "RoundRobinPartitioner": 1.3e9,
}


@dataclass(frozen=True)
class DeviceCosts:
    """What the planner weighs a device against a core by.

    Attributes:
        link_rate: bytes a second between host and device, through pinned memory.
        convert_rate: bytes a second at which a core makes columns ready to cross: masks, codes of strings.
        device_rate: bytes of input a second that an operator on a device gets through.
        launch: seconds an operator takes on a device whatever it is given, for each partition.
        train_bytes: rows of this size, in bytes, are worth training on a device.
        cores: how many cores of a machine share the work that one of its devices does.
        block_bytes: of blocks that devices hold for the stages that read them, all devices together. A worker has a
            quarter of its device's pool for them. The default is that of one device of 40 GB, as a plan doesn't
            depend on how many there are.
        host_rates: bytes of input a second that one core gets through, by operator or kind of partitioner.
    """

    link_rate: float = 20e9
    convert_rate: float = 4e9
    device_rate: float = 200e9
    launch: float = 200e-6
    train_bytes: float = 32 << 20
    cores: int = 8
    block_bytes: float = 8 << 30
    host_rates: Mapping[str, float] = field(default_factory=lambda: dict(HOST_RATES), hash=False)

    def on_host(self, work: Kernel | Partitioner, bytes_in: float) -> float:
        """Seconds of one core for an operator over so many bytes, or to cut these for an exchange.

        Example:
            >>> from headwater.ops.partitioner import RoundRobinPartitioner
            >>> DeviceCosts(host_rates={"RoundRobinPartitioner": 50}).on_host(RoundRobinPartitioner(4), 100)
            2.0
        """
        name = work.label if isinstance(work, Kernel) else type(work).__name__
        return bytes_in / self.host_rates.get(name, 1e9)

    def on_device(self, bytes_in: float, partitions: int) -> float:
        """Seconds of one core's share of a device for an operator over so many bytes."""
        return (bytes_in / self.device_rate + self.launch * partitions) * self.cores

    def crossing(self, size: float) -> float:
        """Seconds of one core, and of its share of the link, to bring so many bytes across."""
        return size / self.convert_rate + size / self.link_rate * self.cores

    def staying(self, size: float) -> float:
        """What share of so many bytes of blocks stays on devices until they are read.

        Example:
            >>> costs = DeviceCosts(block_bytes=100)
            >>> costs.staying(0), costs.staying(100), costs.staying(400)
            (1.0, 1.0, 0.25)
        """
        return min(1.0, self.block_bytes / size) if size else 1.0
