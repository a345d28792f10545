"""Parts of an optimizer's state, kept by members of a gang, and put together when the gang changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import headwater as hw
from headwater.ops.training.local_shard import local_shards, make_info, run_locally
from headwater.ops.training.minibatch import Minibatch
from headwater.ops.training.program import Settings, State
from headwater.runtime.collectives.endpoint import Endpoint
from headwater.runtime.collectives.errors import GroupBrokenError
from headwater.runtime.collectives.group import Group, form
from headwater.runtime.training.gang_plan import even_ranges
from headwater.runtime.training.sharded_state import ShardedState

SHARDS, STEPS = 4, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(640, 8)).astype(np.float32)
COLUMNS = {"x": X, "y": (X[:, 0] > 0).astype(np.float32)}
INFO = make_info(COLUMNS, shards=SHARDS, batch_size=64)


def make_program() -> Minibatch:
    objective = hw.objectives.MLP(hidden=(2000,), task="binary")  # 20,001 parameters: five chunks
    return Minibatch(objective, Settings(optimizer=hw.optim.adam(1e-2), steps=STEPS, batch_size=64))


class Peer:
    """A member that goes from one generation to the next, in a thread of its own."""

    def __init__(self) -> None:
        self.program = make_program()
        self.sharded = ShardedState(self.program)
        self.state: State | None = None
        self.step = 0

    def run(self, group: Group, upto: int, broken_at: int | None) -> bool:
        if self.state is None:
            self.state = self.program.start(INFO)
        if not self.sharded.share(self.state, self.step, group):
            return False
        shards = local_shards(COLUMNS, INFO)
        while self.step < upto and not self.program.finished(self.state):
            statistics = {
                i: self.program.statistics(self.state, shards[i]) for i in range(*group.layout[group.rank])
            }
            names = list(next(iter(statistics.values())))
            parts = {i: [np.asarray(found[n]).reshape(-1) for n in names] for i, found in statistics.items()}
            if self.step == broken_at and group.rank == 0:
                group.abandon()
            self.state, _ = self.sharded.step(self.state, self.step, group, parts, names, b"")
            self.step += 1
        return True


def generation(
    peers: Sequence[Peer], number: int, upto: int = STEPS, broken_at: int | None = None
) -> list[Any]:
    """Let peers work together until they have made so many steps, or the gang breaks; return what each says."""
    endpoints = [Endpoint("here") for _ in peers]
    addresses, ranges = [e.address for e in endpoints], even_ranges(SHARDS, len(peers))
    said: list[Any] = [None] * len(peers)

    def work(rank: int) -> None:
        try:
            with form(endpoints[rank], rank, addresses, ranges, number, "token", 20) as group:
                said[rank] = peers[rank].run(group, upto, broken_at)
                if said[rank] and peers[rank].program.finished(peers[rank].state or {}):
                    peers[rank].sharded.gather(peers[rank].state or {}, group)
        except GroupBrokenError as error:
            said[rank] = error

    in_threads([lambda rank=rank: work(rank) for rank in range(len(peers))])
    for endpoint in endpoints:
        endpoint.close()
    return said


def in_threads(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def alone() -> State:
    program = make_program()
    return run_locally(program, local_shards(COLUMNS, INFO), INFO)


def same(state: State | None, other: State) -> None:
    assert state is not None
    assert np.array_equal(state["params"], other["params"])
    assert state["optimizer"].keys() == other["optimizer"].keys()
    for name, array in other["optimizer"].items():
        assert np.array_equal(state["optimizer"][name], array)


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_the_bits_are_those_of_one_process_with_all_of_the_state(members, alone):
    peers = [Peer() for _ in range(members)]
    assert generation(peers, 0) == [True] * members
    for peer in peers:
        same(peer.state, alone)


def test_a_gang_that_breaks_before_its_first_step_begins_again(alone):
    peers = [Peer() for _ in range(3)]
    assert all(isinstance(word, GroupBrokenError) for word in generation(peers, 0, broken_at=0))
    assert generation(peers[:2], 1) == [True, True]
    same(peers[0].state, alone)


def test_one_of_three_dies_and_the_others_go_on(alone):
    peers = [Peer() for _ in range(3)]
    generation(peers, 0, upto=3)
    assert generation([peers[0], peers[2]], 1) == [True, True]
    same(peers[2].state, alone)


def test_a_member_joins_with_the_parameters_alone(alone):
    peers = [Peer() for _ in range(2)]
    generation(peers, 0, upto=3)
    new = Peer()
    new.state, new.step = dict(peers[0].state or {}), 3  # what the newest member sends it
    assert generation([*peers, new], 1) == [True] * 3
    same(new.state, alone)


def test_two_neighbours_that_die_take_a_part_with_them_and_all_are_told():
    peers = [Peer() for _ in range(4)]
    generation(peers, 0, upto=3)
    assert generation(peers[:2], 1) == [False, False]
