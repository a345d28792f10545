"""Which operators a plan puts on a GPU, where rows cross, and that no cheaper way was overlooked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ParameterError
from headwater.ops.device import device_kernel
from headwater.ops.device.device_kernel import DeviceKernel, lowers
from headwater.ops.device.operators.partition import DevicePartition
from headwater.ops.device.transfer import ToDevice, ToHost
from headwater.ops.expressions import col
from headwater.ops.filter import FilterKernel
from headwater.ops.kernel import Kernel
from headwater.ops.partitioner import HashPartitioner, Partitioner, RangePartitioner, RoundRobinPartitioner
from headwater.ops.project import ProjectKernel
from headwater.ops.sort import SortKey
from headwater.planner.device_costs import DeviceCosts
from headwater.planner.device_outlook import Outlook
from headwater.planner.devices import place_on_devices
from headwater.planner.explain import explain_dict, physical_lines
from headwater.planner.options import PlanOptions
from headwater.planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    Estimate,
    Exchange,
    Operator,
    PhysicalPlan,
    ShuffleLeaf,
    Stage,
    Step,
    Transfer,
    UnionStep,
    all_kernels,
)

SCHEMA = pa.schema([("x", pa.float64())])
NESTED = pa.schema([("x", pa.list_(pa.float64()))])
RANGES = RangePartitioner((SortKey("x"),), 4)
#: a crossing of s bytes takes 9 s seconds, and an operator there 8 s
COSTS = DeviceCosts(link_rate=1.0, convert_rate=1.0, device_rate=1.0, launch=0.0, cores=8)


@dataclass(frozen=True)
class Both(Kernel):
    """An operator that has a kernel on a device, and takes so many seconds a byte on the host."""

    number: int = 0

    @property
    def label(self) -> str:
        return f"both{self.number}"


@dataclass(frozen=True)
class OnlyHost(Both):
    """One that has none."""

    @property
    def label(self) -> str:
        return f"host{self.number}"


@dataclass(frozen=True)
class There(DeviceKernel):
    """What it is on a device."""

    kernel: Both

    @property
    def label(self) -> str:
        return self.kernel.label


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    lowers(Both)(lambda kernel, schemas: There(kernel))
    yield
    del device_kernel._LOWERERS[Both]


def chain(*kernels: Kernel, sizes: Sequence[float] = (), schema: pa.Schema = SCHEMA) -> Operator:
    """Operators over the blocks of stage 0, each leaving so many bytes; 100 without sizes."""
    operator: Operator = BlockLeaf(0, 0, schema)
    for kernel, size in zip(kernels, sizes or [100.0] * len(kernels)):
        operator = Step(kernel, (operator,), schema, Estimate(1, size))
    return operator


def plan_of(operator: Operator, first: float = 100.0, made: bool = False) -> PhysicalPlan:
    """A stage that leaves so many bytes, one with the operator, and one that reads that.

    With ``made``, the first has an operator of a device, `both99`.
    """
    rows: Operator = UnionStep((), SCHEMA)
    if made:
        rows = Step(
            Both(99), (Step(OnlyHost(98), (rows,), SCHEMA, Estimate(1, first)),), SCHEMA, Estimate(1, first)
        )
    begin = Stage(0, "k0", "first", rows, 1, SCHEMA, estimate=Estimate(1, first))
    middle = Stage(1, "k1", "second", operator, 1, SCHEMA, estimate=Estimate(1, 1))
    end = Stage(2, "k2", "third", BlockLeaf(1, 1, SCHEMA), 1, SCHEMA)
    return PhysicalPlan((begin, middle, end), {"out": 2})


def placed(
    operator: Operator,
    device: str = "gpu",
    first: float = 100.0,
    room: float | None = None,
    **rates: float,
) -> PhysicalPlan:
    """A plan of three stages; with ``room`` the first makes its rows on a device that has room for so many bytes."""
    made = room is not None
    costs = replace(
        COSTS,
        host_rates={name: 1 / seconds for name, seconds in rates.items()} | {"both99": 1e-9},
        block_bytes=room or 0.0,
    )
    return place_on_devices(plan_of(operator, first, made), PlanOptions(device=device, device_costs=costs))


def names(plan: PhysicalPlan) -> list[str]:
    return [
        f"{kernel.label}@" if isinstance(kernel, There) else kernel.label
        for kernel in all_kernels(plan.stages[1].operator)
    ]


def test_without_a_device_the_plan_stays_as_it_is():
    plan = plan_of(chain(Both()))
    assert place_on_devices(plan, PlanOptions()) is plan


def test_whatever_has_a_kernel_goes_there_if_asked():
    plan = placed(chain(Both(1), OnlyHost(2), Both(3), Both(4), sizes=(10, 20, 30, 40)))
    assert names(plan) == [
        "to device",
        "both1@",
        "to host",
        "host2",
        "to device",
        "both3@",
        "both4@",
        "to host",
    ]
    stage = plan.stages[1]
    assert (stage.device, stage.transfer.to_device, stage.transfer.to_host) == ("gpu", 100 + 20, 10 + 40)
    assert any("on gpu: about 120 B there, 50 B back" in line for line in physical_lines(plan))
    refusals = [event.detail for event in plan.trace if not event.fired]
    assert refusals == ["second: host2 has no kernel there"]


def test_only_what_is_worth_the_way_goes_there():
    assert names(placed(chain(Both(1)), "auto", both1=10.0)) == ["both1"]
    assert names(placed(chain(Both(1)), "auto", both1=100.0)) == ["to device", "both1@", "to host"]
    # alone neither is worth it, together they are
    assert names(placed(chain(Both(1)), "auto", both1=20.0)) == ["both1"]
    assert names(placed(chain(Both(1), Both(2)), "auto", both1=20.0, both2=20.0)) == [
        "to device", "both1@", "both2@", "to host"
    ]  # fmt: skip


def test_a_cheap_operator_between_dear_ones_stays_on_the_device():
    plan = placed(chain(Both(1), Both(2), Both(3)), "auto", both1=99.0, both2=0.1, both3=99.0)
    assert names(plan) == ["to device", "both1@", "both2@", "both3@", "to host"]


def test_rows_cross_where_they_are_fewest():
    plan = placed(chain(Both(1), Both(2), sizes=(1, 1000)), "auto", both1=99.0, both2=20.0)
    assert names(plan) == ["to device", "both1@", "to host", "both2"]


def test_what_was_left_on_a_device_needn_t_cross_again():
    assert names(placed(chain(Both(1), sizes=(1,)), "auto", both1=10.0)) == ["both1"]
    plan = placed(chain(Both(1), sizes=(1,)), "auto", room=100, both1=10.0)
    assert names(plan) == ["to device", "both1@", "to host"]
    first, second, third = (stage.transfer for stage in plan.stages)
    assert (first.to_device, first.to_host, first.found) == (100, 100, 0)  # a block always goes to the host
    assert (second.to_device, second.to_host, second.found) == (0, 1, 100)
    assert third == Transfer()  # has no operator
    text = list(physical_lines(plan))
    assert "    on gpu: about 0 B there, 1 B back; 100 B found there" in text
    assert text[-1] == "Between host and device: about 100 B there, 101 B back; 100 B found there"
    stages = explain_dict({}, {}, plan)["stages"]
    assert [stage["found_on_device_bytes"] for stage in stages] == [0, 100, 0]


def test_what_is_larger_than_the_room_crosses_in_part():
    plan = placed(chain(Both(1)), first=400, room=100)
    assert plan.stages[1].transfer == Transfer(to_device=300, to_host=100, found=100)
    none = placed(chain(Both(1)), first=400, room=0)
    assert none.stages[1].transfer == Transfer(to_device=400, to_host=100)
    both = Step(Both(1), (BlockLeaf(0, 0, SCHEMA), BlockLeaf(1, 1, SCHEMA)), SCHEMA, Estimate(1, 10))
    stages = list(plan_of(both, made=True).stages)
    stages[1:1] = [replace(stages[0], id=1, key="other", estimate=Estimate(1, 300))]
    stages = [replace(stage, id=number) for number, stage in enumerate(stages[:3])]
    costs = replace(COSTS, block_bytes=100)
    found = place_on_devices(PhysicalPlan(tuple(stages), {}), PlanOptions(device="gpu", device_costs=costs))
    assert found.stages[2].transfer == Transfer(to_device=300, to_host=10, found=100)  # they share the room


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, True),
        ({"exchange": Exchange(HashPartitioner(("x",), 4))}, True),
        ({"exchange": Exchange(HashPartitioner(("x",), 1))}, True),
        ({"exchange": Exchange(HashPartitioner(("x",), 4)), "sample": (SortKey("x"),)}, False),
    ],
)
def test_segments_that_the_host_cuts_are_not_left_on_a_device(change, found):
    plan = plan_of(Step(Both(1), (ShuffleLeaf(0, 0, SCHEMA),), SCHEMA, Estimate(1, 1)), made=True)
    plan = replace(plan, stages=(replace(plan.stages[0], **change), *plan.stages[1:]))
    after = place_on_devices(plan, PlanOptions(device="gpu", device_costs=COSTS))
    assert after.stages[1].transfer.found == (100 if found else 0)


def test_broadcasts_are_read_from_the_host_wherever_they_were_made():
    step = Step(Both(1), (BlockLeaf(0, 0, SCHEMA), BroadcastLeaf(1, 0, SCHEMA)), SCHEMA, Estimate(1, 1))
    plan = place_on_devices(plan_of(step, made=True), PlanOptions(device="gpu", device_costs=COSTS))
    assert plan.stages[1].transfer == Transfer(to_host=1, found=100)


def test_nested_columns_stay_on_the_host():
    assert names(placed(chain(Both(1), schema=NESTED))) == ["both1"]


def test_filters_and_projections_on_a_device_are_fused_and_explained():
    schema = pa.schema([("x", pa.float64()), ("y", pa.int64())])
    narrow = pa.schema([("z", pa.float64())])
    steps = [
        (FilterKernel(col("y") > 0), schema),
        (FilterKernel(col("x") > 0), schema),
        (ProjectKernel((("z", col("x") * 2),), narrow), narrow),
    ]
    operator: Operator = BlockLeaf(0, 0, schema)
    for kernel, after in steps:
        operator = Step(kernel, (operator,), after, Estimate(1, 100))
    union = UnionStep(((operator, 1), (operator, 1)), narrow)
    plan = placed(Step(OnlyHost(1), (union,), narrow, Estimate(1, 1)))
    assert names(plan) == ["to device", "Filter+Filter+Project", "to host"] * 2 + ["host1"]
    told = [event.detail for event in plan.trace if event.rule == "device_fusion"]
    assert told == [
        "second: Filter and Filter and Project are one kernel over kept rows; 'y' is read by the filter alone"
    ]
    step = plan.stages[1].operator.inputs[0].branches[0][0].inputs[0]
    assert (step.schema, step.inputs[0].schema) == (narrow, schema)


def test_broadcasts_are_read_by_the_host():
    leaf = BroadcastLeaf(5, 0, SCHEMA)
    plan = placed(Step(Both(1), (BlockLeaf(0, 0, SCHEMA), leaf), SCHEMA, Estimate(1, 1)))
    top = plan.stages[1].operator
    assert isinstance(top, Step)
    assert isinstance(top.kernel, ToHost)
    inputs = top.inputs[0].inputs
    assert isinstance(inputs[0].kernel, ToDevice)
    assert inputs[1] is leaf


def test_branches_of_a_union_cross_together():
    union = UnionStep(((chain(Both(1)), 1), (chain(Both(2)), 1)), SCHEMA)
    plan = placed(Step(Both(3), (union,), SCHEMA, Estimate(1, 100)))
    assert names(plan) == ["to device", "both1@", "to device", "both2@", "both3@", "to host"]


def test_keys_of_what_a_device_made_are_their_own():
    before, once, again = plan_of(chain(Both())), placed(chain(Both())), placed(chain(Both()))
    changed = [a.key != b.key for a, b in zip(before.stages, once.stages)]
    assert changed == [False, True, True]  # the stage, and who reads it
    assert [stage.key for stage in once.stages] == [stage.key for stage in again.stages]


def test_stages_that_do_other_things_on_a_device_have_other_keys():
    both = chain(Both(1), Both(2), sizes=(1, 1000))
    whole = placed(both, "auto", both1=99.0, both2=99_000.0).stages[1]
    half = placed(both, "auto", both1=99.0, both2=20.0).stages[1]
    assert whole.device == half.device == "gpu"
    assert whole.key != half.key


@pytest.mark.parametrize("partitioner", [HashPartitioner(("x",), 4), RoundRobinPartitioner(3)])
def test_rows_that_come_from_a_device_are_cut_there_for_an_exchange(partitioner):
    plan = plan_of(chain(Both(1)))
    stage = replace(plan.stages[1], exchange=Exchange(partitioner))
    plan = replace(plan, stages=(plan.stages[0], stage, plan.stages[2]))
    made = place_on_devices(plan, PlanOptions(device="gpu", device_costs=COSTS)).stages[1].operator
    assert made.kernel == DevicePartition(partitioner)
    sampled = replace(plan, stages=(plan.stages[0], replace(stage, sample=(SortKey("x"),)), plan.stages[2]))
    made = place_on_devices(sampled, PlanOptions(device="gpu", device_costs=COSTS)).stages[1].operator
    assert made.kernel == ToHost()


def test_unknown_devices_are_refused():
    with pytest.raises(ParameterError, match="gpu"):
        PlanOptions(device="gpus")


def seconds_of(
    operator: Operator, sizes: dict[int, float], rates: dict[str, float], there: float = 0.0
) -> float:
    """What a chain is expected to take, summed again from the costs' definition; so much of what it reads is there."""
    if not isinstance(operator, Step):
        return 0.0
    below = operator.inputs[0]
    read = below.estimate.bytes if isinstance(below, Step) else sizes[-1]
    if isinstance(operator.kernel, DevicePartition):
        cost = (8 + 9) * read
    elif isinstance(operator.kernel, ToDevice | ToHost):
        cost = 9 * (operator.estimate.bytes - (0.0 if isinstance(below, Step) else there))
    elif isinstance(operator.kernel, There):
        cost = 8 * read
    else:
        cost = rates[operator.kernel.label] * read
    return cost + seconds_of(below, sizes, rates, there)


def every_way(kernels: list[Both], sizes: list[float], first: float) -> Iterator[Operator]:
    """Every assignment of sides, crossing only where neighbours differ; it begins and ends on the host."""
    for sides in itertools.product((False, True), repeat=len(kernels)):
        if any(side and isinstance(kernel, OnlyHost) for side, kernel in zip(sides, kernels)):
            continue
        operator, at, size = BlockLeaf(0, 0, SCHEMA), False, first
        for side, kernel, left in zip(sides, kernels, sizes):
            if side != at:
                operator = Step(ToDevice() if side else ToHost(), (operator,), SCHEMA, Estimate(1, size))
            operator = Step(There(kernel) if side else kernel, (operator,), SCHEMA, Estimate(1, left))
            at, size = side, left
        yield Step(ToHost(), (operator,), SCHEMA, Estimate(1, size)) if at else operator


@given(
    st.lists(st.tuples(st.booleans(), st.floats(1, 500), st.floats(0.01, 200)), min_size=1, max_size=6),
    st.floats(1, 500),
    st.none() | st.floats(0, 1000),
)
def test_no_way_is_cheaper(steps, first, room):
    kernels = [(Both if both else OnlyHost)(number) for number, (both, _, _) in enumerate(steps)]
    sizes = [size for _, size, _ in steps]
    rates = {kernel.label: seconds for kernel, (_, _, seconds) in zip(kernels, steps)}
    stage = placed(chain(*kernels, sizes=sizes), "auto", first, room, **rates).stages[1]
    known, there = {-1: first}, 0.0 if room is None else min(first, room)
    best = min(seconds_of(way, known, rates, there) for way in every_way(kernels, sizes, first))
    assert seconds_of(stage.operator, known, rates, there) == pytest.approx(best)
    on_device = stage.device == "gpu" and isinstance(next(all_kernels(stage.operator)), ToDevice)
    assert stage.transfer.found == (pytest.approx(there) if on_device else 0)


def exchanged(
    operator: Operator,
    reader: Operator,
    device: str = "gpu",
    first: float = 100.0,
    room: float | None = None,
    partitioner: Partitioner = RANGES,
    **rates: float,
) -> PhysicalPlan:
    """As `placed`, with the second stage cut for an exchange, and a third that reads its segments."""
    plan = plan_of(operator, first, room is not None)
    size = operator.estimate if isinstance(operator, Step) else Estimate(1, first)
    begin = replace(plan.stages[0], sample=(SortKey("x"),))
    exchange = Exchange(partitioner, 0 if partitioner is RANGES else None)
    middle = replace(plan.stages[1], exchange=exchange, estimate=size)
    stages = (begin, middle, replace(plan.stages[2], operator=reader, estimate=Estimate(1, 1)))
    seconds = {"both99": 1e9} | rates
    costs = replace(
        COSTS,
        host_rates={name: 1 / each for name, each in seconds.items()},
        block_bytes=1000.0 if room is None else room,
    )
    options = PlanOptions(device=device, device_costs=costs)
    return place_on_devices(PhysicalPlan(stages, {"out": 2}), options)


def reading(*kernels: Kernel, sizes: Sequence[float] = ()) -> Operator:
    """Operators over the segments of stage 1, as `chain`."""
    operator: Operator = ShuffleLeaf(0, 1, SCHEMA)
    for kernel, size in zip(kernels, sizes or [100.0] * len(kernels)):
        operator = Step(kernel, (operator,), SCHEMA, Estimate(1, size))
    return operator


def test_a_stage_that_only_cuts_blocks_does_it_where_they_are():
    plan = exchanged(BlockLeaf(0, 0, SCHEMA), reading(Both(1)), room=1000)
    cut, reader = plan.stages[1:]
    assert names(plan) == ["to device", "partition, to host"]
    assert cut.operator.kernel == DevicePartition(RANGES)
    assert (cut.device, cut.label) == ("gpu", "second [gpu]")
    assert [s.transfer for s in (cut, reader)] == [Transfer(to_host=100, found=100)] * 2
    assert cut.parents == (0,)
    text = list(physical_lines(plan))
    assert text[text.index("Stage 1: second [gpu]") + 3 :][:2] == [
        "    exchange: range [x] into 4, boundaries from stage 0",
        "    on gpu: about 0 B there, 100 B back; 100 B found there",
    ]
    assert "second: partition, to host" in [event.detail for event in plan.trace if event.fired]


def test_branches_that_are_only_cut_go_there_together():
    union = UnionStep(((BlockLeaf(0, 0, SCHEMA), 1), (BlockLeaf(1, 0, SCHEMA), 1)), SCHEMA)
    plan = exchanged(union, reading(Both(1)), first=60.0, room=1000)
    assert names(plan) == ["to device", "to device", "partition, to host"]
    assert plan.stages[1].transfer == Transfer(to_host=120, found=120)


@pytest.mark.parametrize(
    ("found", "cutting", "reader", "there"),
    [
        (True, 16.0, 1.0, False),  # 8 seconds a byte to cut there, and 9 back
        (True, 18.0, 1.0, True),
        (False, 18.0, 1.0, False),  # and 9 there
        (False, 27.0, 1.0, True),
        (True, 9.0, 30.0, True),  # it saves its reader 9
        (True, 7.0, 30.0, False),
        (True, 15.5, 19.0, True),  # who takes 19 on the host, and 17 there with what it finds
        (True, 14.5, 19.0, False),
    ],
)
def test_rows_are_cut_there_if_that_and_what_readers_save_is_worth_it(found, cutting, reader, there):
    rates = {"RangePartitioner": cutting, "both1": reader}
    room = 1000 if found else None
    plan = exchanged(BlockLeaf(0, 0, SCHEMA), reading(Both(1)), "auto", room=room, **rates)
    assert names(plan) == (["to device", "partition, to host"] if there else [])
    assert plan.stages[2].transfer.found == (100 if there and reader > 17 else 0)


def test_rows_that_the_host_makes_are_cut_there_too():
    plan = exchanged(chain(OnlyHost(1)), reading(Both(1)), partitioner=HashPartitioner(("x",), 3))
    assert names(plan) == ["host1", "to device", "partition, to host"]
    assert plan.stages[2].transfer.found == 100


def test_what_a_device_can_t_cut_is_explained():
    leaf = BlockLeaf(0, 0, NESTED)
    stages = list(plan_of(leaf).stages)
    stages[0] = replace(stages[0], schema=NESTED)
    stages[1] = replace(stages[1], schema=NESTED, exchange=Exchange(HashPartitioner(("x",), 3)))
    plan = place_on_devices(PhysicalPlan(tuple(stages[:2]), {}), PlanOptions(device="gpu"))
    assert plan.stages[1] == stages[1]
    assert [event.detail for event in plan.trace] == ["second: hash [x] into 3: 'x' is list<item: double>"]


def test_a_reader_of_many_exchanges_is_looked_at_as_often_as_one_of_few():
    looked = []

    def seconds(stage: Stage, left: Set[int]) -> float:
        looked.append((stage.id, sorted(left)))
        return 100.0 - 2.0 * len(left)

    cut = Stage(0, "k", "cut", UnionStep((), SCHEMA), 1, SCHEMA, exchange=Exchange(RANGES))
    stages = [replace(cut, id=number, estimate=Estimate(1, 10.0 * number)) for number in range(1, 4)]
    stages.insert(0, replace(cut, exchange=None))
    leaves = UnionStep(tuple((ShuffleLeaf(n, n, SCHEMA), 1) for n in range(4)), SCHEMA)
    outlook = Outlook([*stages, replace(cut, id=4, operator=leaves, exchange=None)], seconds)
    assert [outlook.gain(stage, {0}) for stage in stages[1:]] == pytest.approx([1, 2, 3])
    assert looked == [(4, [0]), (4, [0, 1, 2, 3])]


STEPS = st.lists(st.tuples(st.booleans(), st.floats(1, 500), st.floats(0.01, 200)), max_size=3)


@given(STEPS, STEPS, st.floats(1, 500), st.none() | st.floats(0, 1000), st.floats(0.01, 100))
def test_no_place_to_cut_is_cheaper_for_the_stage_and_its_reader(above, below, first, room, cutting):
    kernels = [(Both if both else OnlyHost)(number) for number, (both, _, _) in enumerate([*above, *below])]
    sizes = [size for _, size, _ in [*above, *below]]
    rates = {kernel.label: each for kernel, (_, _, each) in zip(kernels, [*above, *below])}
    rates["RangePartitioner"] = cutting
    middle, after = kernels[: len(above)], kernels[len(above) :]
    before = [first, *sizes][len(above)]
    operators = chain(*middle, sizes=sizes[: len(above)]), reading(*after, sizes=sizes[len(above) :])
    plan = exchanged(*operators, "auto", first, room, **rates)
    space = 1000.0 if room is None else room
    left = 0.0 if room is None else min(first, space)
    staying = min(before, space)

    def total(stage: Operator, reader: Operator) -> float:
        there = isinstance(stage, Step) and isinstance(stage.kernel, DevicePartition)
        cut = 0.0 if there else cutting * before
        return (
            cut
            + seconds_of(stage, {-1: first}, rates, left)
            + seconds_of(reader, {-1: before}, rates, staying if there else 0.0)
        )

    ways = [
        way for way in every_way(middle, sizes[: len(above)], first) for way in (way, cut_there(way, before))
    ]
    readers = list(every_way(after, sizes[len(above) :], before))
    best = min(total(way, reader) for way in ways for reader in readers)
    assert total(plan.stages[1].operator, plan.stages[2].operator) == pytest.approx(best)


def cut_there(way: Operator, size: float) -> Operator:
    """Cut the rows of a chain on the device, whence they come, or where they go for it."""
    estimate = Estimate(1, size)
    rows = way.inputs[0] if isinstance(way, Step) and isinstance(way.kernel, ToHost) else None
    rows = rows or Step(ToDevice(), (way,), SCHEMA, estimate)
    return Step(DevicePartition(RANGES), (rows,), SCHEMA, estimate)
