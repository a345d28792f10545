"""Sums between devices: the bytes of the host's for any split, and what happens when members die, hang or fail.

Members are threads of this process, and what stands for NCCL (`tests/emulation`) carries their bytes. Real devices are
one for each process, and need NCCL.
"""

from __future__ import annotations

import importlib
import pickle
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import headwater as hw
from headwater.errors import ParameterError
from headwater.ops import objectives, optim
from headwater.ops.device.arrays.ordered_sum import _pairwise, ordered_sum
from headwater.ops.device.discovery import visible_devices
from headwater.runtime.collectives.device_link import LinkError
from headwater.runtime.collectives.endpoint import Endpoint
from headwater.runtime.collectives.errors import GroupBrokenError, PeerLostError, PeerTimeoutError
from headwater.runtime.collectives.group import Group, form
from headwater.runtime.collectives.nccl import NcclGroup
from headwater.runtime.collectives.tree import schedule

pytestmark = pytest.mark.timeout(60)

SMALL = [(1000, "f4"), (1, "f8"), (0, "f4"), (7, "i8")]
LARGE = [(120_000, "f4"), (1, "f8"), (50_001, "f8"), (0, "i8"), (4097, "i8"), (36_864, "c8"), (24_576, "f8")]
SPLITS = [
    [(0, 8)],
    [(0, 4), (4, 8)],
    [(0, 3), (3, 8)],
    [(5, 8), (0, 2), (2, 5)],
    [(0, 1), (1, 7), (7, 8)],
]


def leaf(index: int, kinds: Sequence[tuple[int, str]]) -> list[np.ndarray]:
    rng = np.random.default_rng(index)
    return [
        (rng.standard_normal(length) * 10.0 ** rng.integers(-3, 4)).astype(kind) for length, kind in kinds
    ]


def expected(kinds: Sequence[tuple[int, str]]) -> list[np.ndarray]:
    """What the host's tree gives."""
    steps = schedule((0, 8), tuple((i, i + 1) for i in range(8))).steps
    return [ordered_sum(steps, arrays, np) for arrays in zip(*(leaf(i, kinds) for i in range(8)))]


class Members:
    """Threads that are a gang's members, each with a device of its own as far as NCCL's stand-in knows."""

    def __init__(self, xp: Any, ranges: Sequence[tuple[int, int]]):
        self.xp, self.ranges, self.token = xp, ranges, secrets.token_hex()
        self.endpoints = [Endpoint("node") for _ in ranges]
        self.generation = 0
        self.add = lambda steps, operands, xp: _pairwise(steps, operands) if steps else operands[0]

    def run(self, job: Callable[[Group], Any], ranks: Sequence[int] | None = None) -> list[Any]:
        """Form a group and run a function in each member; what it returned or raised, by rank."""
        self.generation += 1
        addresses = [endpoint.address for endpoint in self.endpoints]
        found: list[Any] = [None] * len(self.ranges)

        def member(rank: int) -> None:
            try:
                group = form(
                    self.endpoints[rank], rank, addresses, self.ranges, self.generation, self.token, 10.0
                )
                found[rank] = job(group)
            except BaseException as error:
                found[rank] = error

        threads = [
            threading.Thread(target=member, args=(rank,), name=f"member {rank}") for rank in range(len(found))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40.0)
        return found

    def device(self, group: Group) -> NcclGroup:
        return NcclGroup(group, self.xp, self.add, 20.0)

    def parts(self, group: Group, kinds: Sequence[tuple[int, str]]) -> dict[int, list[Any]]:
        mine = range(*self.ranges[group.rank])
        return {index: [self.xp.asarray(array) for array in leaf(index, kinds)] for index in mine}


@pytest.fixture
def members(xp, monkeypatch) -> Iterator[Callable[..., Members]]:
    nccl = importlib.import_module("cupy.cuda.nccl")
    if not hasattr(nccl, "device_name"):
        pytest.skip("threads of a process share its real device, and NCCL wants one for each member")
    names = threading.local()
    count = iter(range(1_000_000))

    def name() -> str:
        names.own = getattr(names, "own", None) or f"device {next(count)}"
        return names.own

    monkeypatch.setattr(nccl, "device_name", name)
    made: list[Members] = []

    def make(ranges: Sequence[tuple[int, int]] = ((0, 3), (3, 5), (5, 8))) -> Members:
        made.append(Members(xp, list(ranges)))
        return made[-1]

    yield make
    for each in made:
        for endpoint in each.endpoints:
            endpoint.close()


def same(got: Sequence[Any], due: Sequence[np.ndarray]) -> bool:
    return all(a.dtype == b.dtype and a.get().tobytes() == b.tobytes() for a, b in zip(got, due, strict=True))


@pytest.mark.parametrize("ranges", SPLITS)
def test_sums_have_the_bytes_of_the_hosts_for_any_split(members, ranges):
    gang = members(ranges)
    if ranges == SPLITS[2]:  # each order is a kernel, and each takes a second to compile here
        gang.add = ordered_sum

    def job(group: Group) -> None:
        device = gang.device(group)
        for kinds in (SMALL, LARGE, SMALL):
            parts = gang.parts(group, kinds)
            sums, notes = device.all_reduce(parts, b"%d" % group.rank)
            assert notes == [b"%d" % rank for rank in range(group.size)]
            assert same(sums, expected(kinds))
            own = device.reduce_scatter(parts)
            assert same(own, [whole[device.chunk(len(whole))] for whole in expected(kinds)])
            assert same(device.all_gather(own, [n for n, _ in kinds]), expected(kinds))
            again = {index: [array.get() for array in arrays] for index, arrays in parts.items()}
            for index, arrays in again.items():
                assert all(np.array_equal(a, b) for a, b in zip(arrays, leaf(index, kinds)))
        assert device.barrier(b"x") == [b"x"] * group.size
        device.close()

    assert gang.run(job) == [None] * len(ranges)


def test_results_are_the_members_own(members):
    """A sum of a single part isn't that part."""
    gang = members([(0, 1)])

    def job(group: Group) -> None:
        device, part = gang.device(group), gang.xp.asarray(np.ones(10))
        (total,), _ = device.all_reduce({0: [part]})
        total += 1
        assert part.get().tolist() == [1.0] * 10
        with pytest.raises(ParameterError, match="on the device"):
            device.all_reduce({0: [np.ones(3)]})
        with pytest.raises(ParameterError, match="carries the indices"):
            device.all_reduce({1: [part]})

    assert gang.run(job) == [None]


def test_nothing_crosses_to_the_host(members, xp):
    from cupy.arrays import transfers

    gang, crossed = members([(0, 4), (4, 8)]), []

    def job(group: Group) -> None:
        device, parts = gang.device(group), gang.parts(group, LARGE)
        group.barrier()
        before = dict(transfers)
        device.all_gather(device.reduce_scatter(parts), [n for n, _ in LARGE])
        device.all_reduce(parts)
        crossed.append(before == transfers)
        group.barrier()
        device.close()

    assert gang.run(job) == [None, None]
    assert crossed == [True, True]


@pytest.mark.parametrize("kinds", [SMALL, LARGE])
def test_members_that_die_in_a_transfer_end_it_for_the_others(members, monkeypatch, kinds):
    """One comes to the operation, and sends nothing: its process was killed there."""
    gang = members()

    def job(group: Group) -> float:
        device = gang.device(group)
        if group.rank == 1:
            with group.together("all_reduce", device._shape(gang.parts(group, kinds), "all_reduce")):
                time.sleep(0.2)
                for channel in group._mesh.channels.values():
                    channel.sock.close()
                return 0.0
        begun = time.monotonic()
        with pytest.raises(PeerLostError) as caught:
            device.all_reduce(gang.parts(group, kinds), timeout=30.0)
        assert caught.value.missing == (1,)
        device.close()
        return time.monotonic() - begun

    found = gang.run(job)
    assert all(isinstance(found[rank], float) and found[rank] < 5.0 for rank in (0, 2)), found

    def again(group: Group) -> None:
        device = gang.device(group)
        assert same(device.all_reduce(gang.parts(group, SMALL))[0], expected(SMALL))
        device.close()

    assert gang.run(again) == [None] * 3


def test_members_that_hang_are_named_after_the_deadline(members):
    gang = members([(0, 4), (4, 8)])

    def job(group: Group) -> None:
        device, parts = gang.device(group), gang.parts(group, LARGE)
        if group.rank == 0:
            with group.together("all_reduce", device._shape(parts, "all_reduce")):
                time.sleep(1.5)
            return
        with pytest.raises(PeerTimeoutError, match="deadline") as caught:
            device.all_reduce(parts, timeout=0.5)
        assert caught.value.missing == (0,)

    assert gang.run(job)[1] is None


def test_a_group_that_is_abandoned_ends_its_transfer(members):
    gang = members([(0, 4), (4, 8)])

    def job(group: Group) -> None:
        device, parts = gang.device(group), gang.parts(group, LARGE)
        if group.rank == 0:
            threading.Timer(0.3, device.abandon, ["it is over"]).start()
            with group.together("all_reduce", device._shape(parts, "all_reduce")):
                time.sleep(1.0)
            return
        device.all_reduce(parts, timeout=30.0)

    first, second = gang.run(job)
    assert isinstance(first, GroupBrokenError)
    assert isinstance(second, GroupBrokenError)
    assert "it is over" in str(second)


def test_a_member_that_dies_before_the_communicator_is_there_is_no_hang(members):
    gang = members([(0, 4), (4, 8)])

    def job(group: Group) -> None:
        if group.rank == 0:
            name = pickle.dumps(importlib.import_module("cupy.cuda.nccl").get_unique_id())
            group.broadcast([np.frombuffer(name, np.uint8)], 0)
            with group.together("nccl"):
                time.sleep(0.2)
                raise RuntimeError("gone")
        gang.device(group)

    begun = time.monotonic()
    first, second = gang.run(job)
    assert str(first) == "gone"
    assert isinstance(second, GroupBrokenError)
    assert not isinstance(second, LinkError)
    assert time.monotonic() - begun < 10.0


def test_two_members_on_one_device_are_refused(members, monkeypatch, xp):
    monkeypatch.setattr(importlib.import_module("cupy.cuda.nccl"), "device_name", lambda: "the only one")
    gang = members([(0, 4), (4, 8)])
    found = gang.run(gang.device)
    assert any(isinstance(error, LinkError) and "INVALID_USAGE" in str(error) for error in found)
    assert all(isinstance(error, GroupBrokenError) for error in found)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1", "i2", "?", "c8", "f2"])
def test_vectors_are_added_in_the_order_that_is_given(xp, dtype):
    rng = np.random.default_rng(5)
    steps = schedule((0, 5), tuple((i, i + 1) for i in range(5))).steps
    for length in (0, 1, 1023, 5000):
        spread = 10.0 ** rng.integers(-3, 3, (5, length))
        host = [array.astype(dtype) for array in rng.standard_normal((5, length)) * spread * 10]
        got = ordered_sum(steps, [xp.asarray(array) for array in host], xp)
        due = ordered_sum(steps, host, np)
        assert got.dtype == due.dtype
        np.testing.assert_array_equal(got.get(), due)
        if np.dtype(dtype).kind != "f":
            continue
        exact = ((host[0] + host[1]) + (host[2] + host[3])) + host[4]
        np.testing.assert_array_equal(due, exact)


@pytest.mark.parametrize("ranges", [SPLITS[0], SPLITS[1], SPLITS[4]])
def test_arrays_go_round_by_one_rank(members, ranges):
    gang = members(ranges)

    def job(group: Group) -> None:
        device, before = gang.device(group), (group.rank - 1) % group.size
        mine = [gang.xp.arange(group.rank + 2.0), gang.xp.full(3, group.rank, "i4")[::2]]
        got = device.shift(mine, [before + 2, 2])
        assert [array.get().tolist() for array in got] == [list(range(before + 2)), [before, before]]
        device.close()

    assert gang.run(job) == [None] * len(ranges)


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_gangs_on_real_devices_train_the_same_model():
    """On as many devices as there are; NCCL carries what goes between them, if there are several."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200_000, 8)).astype(np.float32)
    columns = {f"x{i}": x[:, i] for i in range(8)}
    rows = hw.from_arrow({**columns, "y": (x.sum(1) > 0).astype(np.int64)}, partitions=4)
    digests, transports = set(), set()
    with hw.Session(device="gpu", workers=len(visible_devices()), progress=False, journal=False) as session:
        for members in {1, len(visible_devices())}:
            model = hw.train(
                rows,
                features=list(columns),
                target="y",
                objective=objectives.MLP((64, 32), task="binary"),
                optimizer=optim.adam(1e-3),
                batch_size=8192,
                epochs=2,
                seed=1,
                strategy=hw.AllReduce(workers=members),
            )
            result = session.run({"model": model})
            digests.add(result.digest("model"))
            transports |= {stage.training["transport"] for stage in result.report.stages if stage.training}
    assert len(digests) == 1
    assert transports == {"nccl"}
