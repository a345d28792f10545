"""Devices: which operators of a plan run on a GPU, and where rows cross to it and back.

Every operator of a stage is weighed on the host and, where it has a kernel there, on a device; so is every
crossing between the two. The cheapest way from a stage's leaves to its output is kept. It depends on the
pipeline, on expected sizes and on `DeviceCosts` alone, so that two runs plan alike.

Blocks that a stage makes on a device always go to the host, too; who reads them on a device needn't bring back those
that are expected to have stayed there. Stages are placed one after the other, each knowing where those are that it
reads from. Where a stage's rows are cut for an exchange is weighed with what its readers save (`Outlook`); so even a
stage that does nothing else may do it on a device.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import pyarrow as pa

from ..lineage.keys import lineage_key
from ..ops.device import lowerings as lowerings
from ..ops.device.device_kernel import DeviceKernel, device_kernel
from ..ops.device.operators.filter_project import DeviceFilterProject, fused
from ..ops.device.operators.partition import DevicePartition
from ..ops.device.transfer import ToDevice, ToHost, crosses
from ..ops.kernel import Kernel
from ..ops.training.predict import Predict
from ..ops.training.train import TrainKernel
from ..ops.transform import TransformKernel
from .device_costs import DeviceCosts
from .device_outlook import Outlook, is_cut
from .options import PlanOptions
from .plan import (
    BlockLeaf,
    BroadcastLeaf,
    Estimate,
    Operator,
    PhysicalPlan,
    RuleEvent,
    ScanLeaf,
    ShuffleLeaf,
    Stage,
    Step,
    Transfer,
    UnionStep,
    all_kernels,
    all_leaves,
)
from .text import human_bytes
from .widths import row_width

_NEVER = float("inf")
_FUSION = "device_fusion"
#: what a core's work is taken to cost, in seconds, where a device must be used if there is a kernel
_FORCED = 1e12


@dataclass(frozen=True)
class Way:
    """How an operator's rows come to be on one side.

    Attributes:
        seconds: expected, of a core or its share of a device and the link; infinite if there is no way.
        operator: the tree that brings them there.
        transfer: expected bytes that cross on the way.
    """

    seconds: float
    operator: Operator
    transfer: Transfer


def place_on_devices(plan: PhysicalPlan, options: PlanOptions) -> PhysicalPlan:
    """Put operators on devices where that is expected to be faster, or wherever it is possible.

    Args:
        plan: the stages, all on the host.
        options: ``device`` is "cpu" for none, "auto" for what is worth it, "gpu" for whatever has a kernel;
            ``device_costs`` weighs.

    Returns:
        The plan, in which stages that use a device say so, and have lineage keys of their own, by what they do there,
        as have those that read from them: floats may differ in their last bits from what a core gives.

    Example:
        >>> place_on_devices(PhysicalPlan((), {}), PlanOptions(device="gpu")).stages
        ()
    """
    if options.device == "cpu":
        return plan
    placed: list[Stage] = []
    left: set[int] = set()
    events: dict[RuleEvent, None] = dict.fromkeys(plan.trace)

    def seconds(stage: Stage, left: Set[int]) -> float:
        return _Placer(stage, plan.stages, left, options, {}).cheapest().seconds

    outlook = Outlook(plan.stages, seconds)
    for stage in plan.stages:
        stage = _Placer(stage, placed, left, options, events).place(outlook)
        if _leaves(stage):
            left.add(stage.id)
        changed = [p for p in stage.parents if placed[p].key != plan.stages[p].key]
        if stage.device != "cpu" or changed:
            parents = [placed[p].key for p in stage.parents]
            where = tuple(type(kernel).__name__ for kernel in all_kernels(stage.operator))
            stage = replace(stage, key=lineage_key("Placed", (stage.key, stage.device, where), parents))
        placed.append(stage)
    return replace(plan, stages=tuple(placed), trace=tuple(events))


class _Placer:
    def __init__(
        self,
        stage: Stage,
        stages: Sequence[Stage],
        left: Set[int],
        options: PlanOptions,
        events: dict[RuleEvent, None],
    ):
        self.stage, self.stages = stage, stages  # those before it, at least
        self.left = left  # those of them that leave their blocks on devices
        self.costs: DeviceCosts = options.device_costs
        self.forced = options.device == "gpu"
        self.events = events
        read = {
            leaf.stage for leaf in all_leaves(stage.operator) if isinstance(leaf, BlockLeaf | ShuffleLeaf)
        }
        self.staying = self.costs.staying(sum(stages[id].estimate.bytes for id in sorted(read & left)))

    def place(self, outlook: Outlook) -> Stage:
        """Return the stage with its cheapest operator tree."""
        stage = self.stage
        if isinstance(stage.operator, Step) and isinstance(stage.operator.kernel, TrainKernel):
            return self.train(stage.operator)
        gain = 0.0 if self.forced or not is_cut(stage) else outlook.gain(stage, self.left)
        host = self.cheapest(gain)
        if not host.transfer.on_device:
            if self.forced and any(map(_predicts, all_kernels(stage.operator))):
                self.note(True, "a model's predictions")
                return replace(stage, device="gpu", label=f"{stage.label} [gpu]")
            return stage
        host = replace(host, operator=self.fused(host.operator))
        for kernel in all_kernels(host.operator):
            if isinstance(kernel, DeviceFilterProject):
                self.events[RuleEvent(_FUSION, True, f"{stage.label}: {kernel.describe()}")] = None
        names = [kernel.label for kernel in all_kernels(host.operator) if isinstance(kernel, DeviceKernel)]
        self.note(True, ", ".join(name for name in names if name != "to device"))
        label = f"{stage.label} [gpu]"
        return replace(stage, operator=host.operator, device="gpu", label=label, transfer=host.transfer)

    def cheapest(self, gain: float = 0.0) -> Way:
        """The way to the stage's blocks, cut for its exchange on the host or on a device.

        Args:
            gain: seconds that the stage's readers save if it is cut on a device.
        """
        host, device, size = self.ways(self.stage.operator)
        exchange = self.stage.exchange
        if exchange is None or not is_cut(self.stage):
            return host
        if device.seconds == _NEVER:
            if self.forced:
                self.note(False, f"{exchange.partitioner.describe()}: {crosses(self.stage.schema)}")
            return host
        cost = self.costs.on_host(exchange.partitioner, size.bytes) + (_FORCED if self.forced else 0.0)
        there = self.costs.on_device(size.bytes, self.stage.partitions) + self.costs.crossing(size.bytes)
        cut = Way(
            device.seconds + there - gain,
            Step(DevicePartition(exchange.partitioner), (device.operator,), self.stage.schema, size),
            device.transfer + Transfer(to_host=size.bytes),
        )
        return min(replace(host, seconds=host.seconds + cost), cut, key=lambda way: way.seconds)

    def fused(self, operator: Operator) -> Operator:
        """Let filters and projections that follow each other on a device run as one."""
        if isinstance(operator, UnionStep):
            branches = tuple((self.fused(branch), count) for branch, count in operator.branches)
            return replace(operator, branches=branches)
        if not isinstance(operator, Step):
            return operator
        step = replace(operator, inputs=tuple(map(self.fused, operator.inputs)))
        below = step.inputs[0] if step.inputs else None
        if not isinstance(below, Step):
            return step
        if not isinstance(step.kernel, DeviceKernel) or not isinstance(below.kernel, DeviceKernel):
            return step
        kernel = fused(below.kernel, step.kernel)
        if kernel is None:
            return step
        if isinstance(kernel, str):
            self.events[RuleEvent(_FUSION, False, f"{self.stage.label}: {kernel}")] = None
            return step
        return replace(step, kernel=kernel, inputs=below.inputs)

    def train(self, step: Step) -> Stage:
        """Train on devices what is large enough; rows and states go there as the gang reads them."""
        read = sum(self.leaf(leaf).bytes for leaf in all_leaves(step))
        worth = self.forced or read >= self.costs.train_bytes
        self.note(worth, f"{human_bytes(read)} of rows to train on")
        if not worth:
            return self.stage
        return replace(self.stage, device="gpu", label=f"{self.stage.label} [gpu]")

    def note(self, fired: bool, detail: str) -> None:
        self.events[RuleEvent("device_placement", fired, f"{self.stage.label}: {detail}")] = None

    def ways(self, operator: Operator) -> tuple[Way, Way, Estimate]:
        """Return the cheapest way to have the rows on the host, and on the device, and how many there are."""
        if isinstance(operator, Step):
            return self.step(operator)
        if isinstance(operator, UnionStep):
            return self.union(operator)
        host, size = Way(0.0, operator, Transfer()), self.leaf(operator)
        return host, self.there(host, operator.schema, size), size

    def step(self, step: Step) -> tuple[Way, Way, Estimate]:
        """Weigh an operator on both sides."""
        below = [self.ways(child) for child in step.inputs]
        size = below[0][2] if step.estimate is None else step.estimate
        read = sum(estimate.bytes for _, _, estimate in below)
        lowered = device_kernel(step.kernel, [child.schema for child in step.inputs])
        if isinstance(lowered, str):
            if self.forced:
                self.note(False, lowered)
            on_device = Way(_NEVER, step, Transfer())
        else:
            inputs = [
                host if isinstance(child, BroadcastLeaf) else device
                for child, (host, device, _) in zip(step.inputs, below)
            ]
            cost = self.costs.on_device(read, self.stage.partitions)
            on_device = self.over(inputs, cost, lowered, step)
        cost = self.costs.on_host(step.kernel, read)
        if self.forced and not isinstance(lowered, str):
            cost += _FORCED
        on_host = self.over([host for host, _, _ in below], cost, step.kernel, step)
        return (
            min(on_host, self.back(on_device, step.schema, size), key=lambda way: way.seconds),
            min(on_device, self.there(on_host, step.schema, size), key=lambda way: way.seconds),
            size,
        )

    def over(self, inputs: Sequence[Way], cost: float, kernel: Kernel, step: Step) -> Way:
        """An operator over the ways of its inputs."""
        transfer = sum((way.transfer for way in inputs), Transfer())
        operators = tuple(way.operator for way in inputs)
        return Way(
            cost + sum(way.seconds for way in inputs),
            replace(step, kernel=kernel, inputs=operators),
            transfer,
        )

    def union(self, union: UnionStep) -> tuple[Way, Way, Estimate]:
        """All branches on one side."""
        found = [self.ways(branch) for branch, _ in union.branches]
        counts = [count for _, count in union.branches]
        host = self.together(union, [way for way, _, _ in found], counts)
        device = self.together(union, [way for _, way, _ in found], counts)
        sizes = [size for _, _, size in found]
        return host, device, Estimate(sum(s.rows for s in sizes), sum(s.bytes for s in sizes))

    def together(self, union: UnionStep, ways: Sequence[Way], counts: Sequence[int]) -> Way:
        """A union over the ways of its branches."""
        branches = tuple((way.operator, count) for way, count in zip(ways, counts))
        transfer = sum((way.transfer for way in ways), Transfer())
        return Way(sum(way.seconds for way in ways), replace(union, branches=branches), transfer)

    def there(self, host: Way, schema: pa.Schema, size: Estimate) -> Way:
        """The way that crosses to the device after all."""
        if crosses(schema) is not None:
            return Way(_NEVER, host.operator, host.transfer)
        step = Step(ToDevice(), (host.operator,), schema, size)
        leaf = host.operator
        left = isinstance(leaf, BlockLeaf | ShuffleLeaf) and leaf.stage in self.left
        found = size.bytes * self.staying if left else 0.0
        moved = host.transfer + Transfer(to_device=size.bytes - found, found=found)
        return Way(host.seconds + self.costs.crossing(size.bytes - found), step, moved)

    def back(self, device: Way, schema: pa.Schema, size: Estimate) -> Way:
        """The way that crosses back to the host after all."""
        step = Step(ToHost(), (device.operator,), schema, size)
        moved = device.transfer + Transfer(to_host=size.bytes)
        return Way(device.seconds + self.costs.crossing(size.bytes), step, moved)

    def leaf(self, leaf: Operator) -> Estimate:
        """How much a leaf reads."""
        if not isinstance(leaf, ScanLeaf):
            return self.stages[leaf.stage].estimate  # type: ignore[union-attr]
        splits = self.stage.splits.get(leaf.slot, ())
        share = leaf.source.column_bytes(leaf.columns)
        size = sum(split.bytes for split in splits) * share
        rows = sum(
            split.rows if split.rows is not None else split.bytes * share / row_width(leaf.schema)
            for split in splits
        )
        return Estimate(rows, max(size, rows * row_width(leaf.schema)))


def _leaves(stage: Stage) -> bool:
    """Whether a stage leaves its blocks on devices as well; not those that the host has cut into segments.

    Nor are segments left there whose strings are of very many values, but no plan knows how many these are.
    """
    top, exchange = stage.operator, stage.exchange
    if stage.sink is not None or not isinstance(top, Step):
        return False
    whole = exchange is None or exchange.count == 1
    return isinstance(top.kernel, DevicePartition) or (isinstance(top.kernel, ToHost) and whole)


def _predicts(kernel: Kernel) -> bool:
    """Whether a kernel of the host computes in the arrays of its stage's device."""
    return isinstance(kernel, TransformKernel) and isinstance(kernel.step, Predict)
