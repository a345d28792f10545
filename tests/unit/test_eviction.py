"""What to give up: the literal GreedyDual-Size, on every trace; and never more than has to go."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.runtime.nodes.eviction import Evictable, choose_victims

blocks = st.lists(
    st.builds(
        Evictable,
        key=st.sampled_from("abcdef"),
        partition=st.integers(0, 5),
        bytes=st.integers(1, 50),
        seconds=st.integers(0, 20).map(float),
        floor=st.sampled_from([0.0, 0.5, 2.0]),
        used=st.integers(0, 3).map(float),
    ),
    max_size=8,
    unique_by=lambda block: (block.key, block.partition),
)


class LiteralGreedyDual:
    """GreedyDual-Size as it is stated: what goes takes its credit from all that stay."""

    def __init__(self) -> None:
        self.credit: dict[str, float] = {}

    def access(self, name: str, seconds: float, size: int) -> None:
        self.credit[name] = seconds / size

    def evict(self) -> str:
        victim = min(self.credit, key=lambda name: (self.credit[name], name))
        least = self.credit.pop(victim)
        self.credit = {name: credit - least for name, credit in self.credit.items()}
        return victim


@pytest.mark.parametrize("seed", range(20))
def test_it_evicts_in_the_order_of_greedy_dual_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # costs and sizes are powers of two, so that both ways of adding up are exact
    facts = {f"b{i}": (2.0 ** rng.integers(0, 8), int(2 ** rng.integers(2, 5))) for i in range(12)}
    literal, held, floor = LiteralGreedyDual(), dict[str, Evictable](), 0.0
    evictions = 0
    for _ in range(300):
        name = f"b{rng.integers(12)}"
        literal.access(name, *facts[name])
        held[name] = Evictable(name, 0, facts[name][1], facts[name][0], floor)
        while sum(block.bytes for block in held.values()) > 40:
            victims, floor = choose_victims(held.values(), 1, floor)
            assert [victim.key for victim in victims] == [literal.evict()]
            del held[victims[0].key]
            evictions += 1
    assert evictions > 50
    assert held.keys() == literal.credit.keys()


@given(blocks, st.integers(-5, 200))
def test_the_least_valuable_go_and_no_more_than_needed(given_blocks: list[Evictable], needed: int) -> None:
    victims, floor = choose_victims(given_blocks, needed)
    staying = [block for block in given_blocks if block not in victims]
    freed = sum(victim.bytes for victim in victims)
    assert freed >= needed or not staying
    if victims:
        assert freed - victims[-1].bytes < needed  # without the last it wouldn't have been enough
        assert floor == max(victim.worth for victim in victims)
        assert all(victim.worth <= block.worth for victim in victims for block in staying)
    # of all sets of as many blocks, none is worth less
    total = sum(victim.worth for victim in victims)
    assert all(
        total <= sum(block.worth for block in other) + 1e-9
        for other in combinations(given_blocks, len(victims))
    )


def test_of_equals_the_one_longest_unused_goes() -> None:
    old, new = Evictable("a", 0, 10, 1.0, used=1.0), Evictable("b", 0, 10, 1.0, used=2.0)
    assert choose_victims([new, old], 5)[0] == [old]


def test_what_was_used_before_the_floor_rose_goes_first_even_if_it_was_dearer() -> None:
    cheap, dear = Evictable("cheap", 0, 10, 10.0), Evictable("dear", 0, 10, 15.0)
    _, floor = choose_victims([cheap, dear], 1)
    newer = replace(cheap, floor=floor)
    assert choose_victims([dear, newer], 1, floor)[0] == [dear]


def test_nothing_goes_without_need() -> None:
    assert choose_victims([Evictable("a", 0, 10, 1.0)], 0, floor=3.0) == ([], 3.0)
