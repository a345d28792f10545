"""Who is in a gang, and who carries which shards."""

from hypothesis import given
from hypothesis import strategies as st

from headwater.runtime.training.gang_plan import Candidate, assign, choose_members, even_ranges


@given(st.integers(1, 64), st.integers(1, 64))
def test_ranges_cover_all_shards_once_and_evenly(shards, members):
    if members > shards:
        return
    ranges = even_ranges(shards, members)
    assert [shard for span in ranges for shard in range(*span)] == list(range(shards))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_the_leader_is_always_a_member_even_when_it_is_about_to_leave():
    candidates = [Candidate("a", "n1", step=9), Candidate("b", "n2", draining=True), Candidate("c", "n3")]
    assert [m.address for m in choose_members(candidates, 2, "b")] == ["a", "b"]


def test_workers_that_are_about_to_leave_are_left_out():
    candidates = [Candidate("a", "n1"), Candidate("b", "n2", draining=True), Candidate("c", "n3")]
    assert [m.address for m in choose_members(candidates, 8, "a")] == ["a", "c"]


def test_members_with_a_newer_state_are_preferred_then_those_with_shards():
    candidates = [
        Candidate("a", "n1"),
        Candidate("b", "n2", step=3),
        Candidate("c", "n3", shards=frozenset({1})),
        Candidate("d", "n4"),
    ]
    assert [m.address for m in choose_members(candidates, 3, "a")] == ["a", "b", "c"]


def test_shards_go_where_their_files_are_then_where_their_blocks_are():
    members = [
        Candidate("a", "n1"),
        Candidate("b", "n2", shards=frozenset({0, 1})),
        Candidate("c", "n3"),
    ]
    order, ranges = assign(members, 6, {"n3": [0, 0, 10, 10, 0, 0], "n1": [5, 5, 5, 5, 1, 1]})
    assert [m.address for m in order] == ["b", "c", "a"]
    assert ranges == [(0, 2), (2, 4), (4, 6)]


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=8))
def test_every_member_gets_a_range(held):
    members = [Candidate(f"w{i}", f"n{i}", shards=frozenset(shards)) for i, shards in enumerate(held)]
    order, ranges = assign(members, 8, {})
    assert sorted(m.address for m in order) == sorted(m.address for m in members)
    assert ranges == even_ranges(8, len(members))


def test_after_a_death_the_others_keep_most_of_their_shards():
    held = [{0, 1}, {4, 5}, {6, 7}]
    members = [Candidate(f"w{i}", f"n{i}", shards=frozenset(shards)) for i, shards in enumerate(held)]
    order, ranges = assign(members, 8, {})
    kept = sum(len(m.shards & set(range(*span))) for m, span in zip(order, ranges))
    assert kept == 6
