"""The fixed tree gives the same bytes however its indices are split over members."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ParameterError
from headwater.runtime.collectives.layout import CHUNK_ELEMENTS, Layout, chunk_span
from headwater.runtime.collectives.ordered_sum import Scratch, ordered_sum
from headwater.runtime.collectives.shape import check_arrays, check_parts
from headwater.runtime.collectives.tree import Schedule, Span, halves, schedule, whole_subtrees


def brute_force(leaves: list[np.ndarray], start: int, size: int) -> np.ndarray | None:
    """Add up the node of the padded binary tree that begins at a leaf and spans a power of two of them."""
    if start >= len(leaves):
        return None
    if size == 1:
        return leaves[start]
    left = brute_force(leaves, start, size // 2)
    right = brute_force(leaves, start + size // 2, size // 2)
    return left if right is None else left + right


def padded(total: int) -> int:
    return 1 << (total - 1).bit_length()


def finish(plan: Schedule, pieces: list[np.ndarray]) -> np.ndarray:
    out = np.full_like(pieces[0], np.nan)
    ordered_sum(plan, pieces, out, Scratch())
    return out


def leaves_of(seed: int, total: int, dtype: str, length: int = 37) -> list[np.ndarray]:
    """Arrays whose sum depends on the order of additions."""
    random = np.random.default_rng(seed)
    return [
        (random.standard_normal(length) * 10.0 ** random.integers(-6, 6, length)).astype(dtype)
        for _ in range(total)
    ]


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[Span]]:
    total = draw(st.integers(1, 40))
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=12))) if total > 1 else []
    edges = [0, *cuts, total]
    return total, list(zip(edges, edges[1:]))


@given(splits(), st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float64"]))
def test_any_split_gives_the_bytes_of_the_plain_recursion(split, seed, dtype):
    total, ranges = split
    leaves = leaves_of(seed, total, dtype)
    sums: dict[Span, np.ndarray] = {}
    for start, stop in ranges:
        for piece in whole_subtrees(total, start, stop):
            plan = schedule(piece, tuple((index, index + 1) for index in range(*piece)))
            sums[piece] = finish(plan, leaves[slice(*piece)])
    spans = tuple(sorted(sums))
    got = finish(schedule((0, total), spans), [sums[span] for span in spans])
    assert got.tobytes() == brute_force(leaves, 0, padded(total)).tobytes()


@given(splits(), st.data())
def test_nodes_may_join_what_their_members_have_before_it_travels(split, data):
    total, ranges = split
    leaves = leaves_of(1, total, "float32")
    places = Layout(ranges, [data.draw(st.sampled_from("abc")) for _ in ranges])
    sums = {
        span: finish(schedule(span, tuple((i, i + 1) for i in range(*span))), leaves[slice(*span)])
        for span, _, _ in places.all_pieces
    }
    merged = {}
    for node in places.members:
        for whole in places.merged(node):
            inside = tuple(
                span for span, _, _ in places.node_pieces(node) if whole[0] <= span[0] < span[1] <= whole[1]
            )
            merged[whole] = finish(schedule(whole, inside), [sums[span] for span in inside])
    assert sum(stop - start for start, stop in merged) == total
    spans = tuple(sorted(merged))
    got = finish(schedule((0, total), spans), [merged[span] for span in spans])
    assert got.tobytes() == brute_force(leaves, 0, padded(total)).tobytes()


@given(splits())
def test_whole_subtrees_cover_a_range_and_none_could_be_larger(split):
    total, ranges = split

    def subtrees(start: int, size: int) -> set[Span]:
        if start >= total:
            return set()
        here = {(start, min(start + size, total))}
        half = size // 2
        return here | (subtrees(start, half) | subtrees(start + half, half) if half else set())

    every = subtrees(0, padded(total))
    for start, stop in ranges:
        found = whole_subtrees(total, start, stop)
        assert [index for piece in found for index in range(*piece)] == list(range(start, stop))
        inside = {piece for piece in every if start <= piece[0] and piece[1] <= stop}
        largest = {p for p in inside if not any(o != p and o[0] <= p[0] and p[1] <= o[1] for o in inside)}
        assert set(found) == largest


def test_the_order_matters_for_these_numbers():
    leaves = leaves_of(3, 8, "float32", 1000)
    assert sum(leaves).tobytes() != brute_force(leaves, 0, 8).tobytes()


@pytest.mark.parametrize("length", [0, 1, 32_768, 32_769, 100_000])
def test_long_vectors_are_added_in_blocks(length):
    leaves = leaves_of(2, 5, "float32", length)
    plan = schedule((0, 5), tuple((index, index + 1) for index in range(5)))
    want = brute_force(leaves, 0, 8).tobytes()
    assert finish(plan, leaves).tobytes() == want
    ordered_sum(plan, leaves, leaves[3], Scratch())
    assert leaves[3].tobytes() == want  # an operand may become the result


def test_a_range_is_cut_at_the_largest_power_of_two():
    assert [halves((0, n))[0][1] for n in range(2, 10)] == [1, 2, 2, 4, 4, 4, 4, 8]


def test_pieces_that_are_no_subtrees_are_refused():
    with pytest.raises(ValueError, match="subtrees"):
        schedule((0, 4), ((0, 1), (1, 3), (3, 4)))
    with pytest.raises(ValueError, match="cover"):
        schedule((0, 4), ((0, 2), (3, 4)))


@given(st.integers(0, 100_000), st.integers(1, 9))
def test_chunks_cover_a_vector_in_order(length, size):
    chunks = [chunk_span(length, rank, size) for rank in range(size)]
    assert chunks[0].start == 0
    assert chunks[-1].stop == length
    assert all(left.stop == right.start for left, right in zip(chunks, chunks[1:]))
    assert all(part.start % CHUNK_ELEMENTS == 0 or part.start == length for part in chunks)
    whole = [part.stop - part.start for part in chunks]
    assert max(whole) - min(whole) < 2 * CHUNK_ELEMENTS


@pytest.mark.parametrize(
    "ranges", [((0, 2), (3, 4)), ((0, 2), (1, 4)), ((1, 3),), ((0, 4), (4, 4)), ((2, 0), (0, 2)), ()]
)
def test_layouts_with_gaps_overlaps_or_idle_members_are_refused(ranges):
    with pytest.raises(ParameterError, match="cover"):
        Layout(ranges, ["node"] * len(ranges))


def test_ranges_may_be_in_any_order_of_ranks():
    places = Layout([(4, 8), (0, 4)], ["a", "b"])
    assert [rank for _, rank, _ in places.all_pieces] == [1, 0]
    assert places.total == 8


def test_an_agent_speaks_for_its_node_and_owners_for_themselves():
    places = Layout([(i, i + 1) for i in range(5)], ["a", "a", "b", "b", "b"])
    assert [places.agent("a", owner) for owner in range(5)] == [0, 1, 0, 1, 0]
    assert [places.agent("b", owner) for owner in range(5)] == [2, 3, 2, 3, 4]


def test_wrong_arrays_are_named():
    with pytest.raises(ParameterError, match=r"array 1 .* shape \(2, 2\).*reshape"):
        check_arrays([np.zeros(3), np.zeros((2, 2))], "all_reduce")
    with pytest.raises(ParameterError, match="object"):
        check_arrays([np.array([None])], "all_reduce")
    with pytest.raises(ParameterError, match=r"0 … 1.*\[0\]"):
        check_parts({0: [np.zeros(1)]}, 0, 2, "all_reduce")
    with pytest.raises(ParameterError, match="part 1 has other lengths"):
        check_parts({0: [np.zeros(1)], 1: [np.zeros(2)]}, 0, 2, "all_reduce")
