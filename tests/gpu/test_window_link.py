"""Sums between members that share a device, through windows into each other's memory: the bytes of the host's.

Members are threads of this process, which CUDA would not let map their own memory; what stands for it does so here.
Processes are in `tests/cluster/test_devices.py`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from headwater.ops.device import ipc
from headwater.ops.device.windows import Windows
from headwater.runtime.collectives import window_link
from headwater.runtime.collectives.device_link import LinkError
from headwater.runtime.collectives.errors import GroupBrokenError, PeerLostError, PeerTimeoutError
from headwater.runtime.collectives.group import Group
from headwater.runtime.collectives.nccl import IpcGroup

from .conftest import real_cupy
from .test_nccl import LARGE, SMALL, SPLITS, Members, expected, same

pytestmark = pytest.mark.timeout(60)


class Sharers(Members):
    """Threads that are members, all on one device."""

    def device(self, group: Group) -> IpcGroup:
        return IpcGroup(group, self.xp, self.add, Windows(self.xp))


@pytest.fixture
def members(xp, monkeypatch) -> Iterator[Callable[..., Sharers]]:
    if real_cupy() is not None:
        pytest.skip("CUDA doesn't let a process map its own memory")
    monkeypatch.setattr(sys.modules["cupy.ipc"], "own_pid", lambda: -1)
    made: list[Sharers] = []

    def make(ranges: Sequence[tuple[int, int]] = ((0, 3), (3, 5), (5, 8))) -> Sharers:
        made.append(Sharers(xp, list(ranges)))
        return made[-1]

    yield make
    for each in made:
        for endpoint in each.endpoints:
            endpoint.close()
    for _ in range(1000):  # a group that was abandoned lets go a moment later
        if not ipc._open:
            break
        time.sleep(0.005)
    assert not ipc._open


@pytest.mark.parametrize("ranges", SPLITS)
def test_sums_have_the_bytes_of_the_hosts_for_any_split(members, ranges):
    gang = members(ranges)

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
        before = (group.rank - 1) % group.size
        mine = [gang.xp.arange(group.rank + 2.0), gang.xp.full(3, group.rank, "i4")[::2]]
        got = device.shift(mine, [before + 2, 2])
        assert [array.get().tolist() for array in got] == [list(range(before + 2)), [before, before]]
        device.close()

    assert gang.run(job) == [None] * len(ranges)


def test_windows_grow_and_nothing_crosses_to_the_host(members, monkeypatch):
    from cupy.arrays import transfers

    monkeypatch.setattr(window_link, "_LEAST_BYTES", 1)
    gang, crossed = members(), []

    def job(group: Group) -> None:
        device = gang.device(group)
        given = [
            gang.parts(group, [(size, "f4"), (size // 3, "i8")]) for size in (10, 3000, 200, 90_000, 0, 7)
        ]
        group.barrier()
        before = dict(transfers)
        sums = [device.all_reduce(parts)[0] for parts in given]
        crossed.append(before == transfers)
        group.barrier()
        for (total, count), size in zip(sums, (10, 3000, 200, 90_000, 0, 7)):
            assert same([total, count], expected([(size, "f4"), (size // 3, "i8")]))
        device.close()

    assert gang.run(job) == [None] * 3
    assert crossed == [True] * 3


@pytest.mark.parametrize("kinds", [SMALL, LARGE])
def test_members_that_die_end_it_for_the_others(members, kinds):
    gang = members()

    def job(group: Group) -> float:
        device = gang.device(group)
        device.all_reduce(gang.parts(group, SMALL))
        if group.rank == 1:
            with group.together("all_reduce", device._shape(gang.parts(group, kinds), "all_reduce")):
                time.sleep(0.2)
                for channel in group._mesh.channels.values():
                    channel.sock.close()
                device._link.abort()
                return 0.0
        begun = time.monotonic()
        with pytest.raises(PeerLostError) as caught:
            device.all_reduce(gang.parts(group, kinds), timeout=30.0)
        assert caught.value.missing == (1,)
        device.close()
        return time.monotonic() - begun

    found = gang.run(job)
    assert all(isinstance(found[rank], float) and found[rank] < 5.0 for rank in (0, 2)), found


def test_what_was_read_of_a_member_that_died_is_not_used(members, monkeypatch):
    """It dies after it has told where its arrays lie, while others read them."""
    gang, tell = members([(0, 4), (4, 8)]), Group.tell
    dead = threading.Event()

    def dying(self: Group, words: Any, deadline: float) -> Any:
        if self.rank == 1 and not words:
            for channel in self._mesh.channels.values():
                channel.sock.close()
            dead.set()
            raise GroupBrokenError("killed")
        if not words:
            dead.wait(20)
        return tell(self, words, deadline)

    monkeypatch.setattr(Group, "tell", dying)
    first, second = gang.run(lambda group: gang.device(group).all_reduce(gang.parts(group, LARGE)))
    assert isinstance(first, PeerLostError)
    assert str(second) == "killed"


def test_members_that_hang_are_named_and_a_group_can_be_abandoned(members):
    gang = members([(0, 4), (4, 8)])

    def late(group: Group) -> None:
        device, parts = gang.device(group), gang.parts(group, LARGE)
        if group.rank == 0:
            with group.together("all_reduce", device._shape(parts, "all_reduce")):
                time.sleep(1.0)
            return
        with pytest.raises(PeerTimeoutError, match="deadline") as caught:
            device.all_reduce(parts, timeout=0.3)
        assert caught.value.missing == (0,)

    assert gang.run(late)[1] is None

    def abandoned(group: Group) -> None:
        device, parts = gang.device(group), gang.parts(group, LARGE)
        if group.rank == 0:
            threading.Timer(0.2, device.abandon, ["it is over"]).start()
            with group.together("all_reduce", device._shape(parts, "all_reduce")):
                time.sleep(0.6)
            return
        device.all_reduce(parts, timeout=30.0)

    first, second = gang.run(abandoned)
    assert isinstance(first, GroupBrokenError)
    assert isinstance(second, GroupBrokenError)
    assert "it is over" in str(second)


@pytest.mark.parametrize("call", ["ipcGetMemHandle", "ipcOpenMemHandle"])
def test_a_refusal_by_cuda_ends_the_link(members, xp, monkeypatch, call):
    def refuse(*args: Any) -> None:
        raise xp.cuda.runtime.CUDARuntimeError(801)

    monkeypatch.setattr(xp.cuda.runtime, call, refuse)
    gang = members([(0, 4), (4, 8)])
    found = gang.run(lambda group: gang.device(group).all_reduce(gang.parts(group, SMALL)))
    assert any(isinstance(error, LinkError) and "cudaErrorNotSupported" in str(error) for error in found)
    assert all(isinstance(error, GroupBrokenError) for error in found)
    assert not np.any([isinstance(error, PeerLostError) for error in found])
