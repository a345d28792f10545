"""Sampling: every row once an epoch, whatever the sizes; and the same rows at any time, anywhere."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.errors import ParameterError
from headwater.ops.training.sampling import (
    Order,
    batch_rows,
    generator,
    permutation,
    shard_bounds,
    shard_shares,
    steps_per_epoch,
)

sizes = given(
    rows=st.integers(0, 400), shards=st.integers(1, 12), batch_size=st.integers(1, 60), seed=st.integers(0, 9)
)


@sizes
@example(rows=5, shards=8, batch_size=3, seed=0)
@example(rows=0, shards=1, batch_size=1, seed=0)
@settings(deadline=None, max_examples=300)
def test_every_row_is_drawn_once_an_epoch_in_full_batches(
    rows: int, shards: int, batch_size: int, seed: int
) -> None:
    bounds, shares = shard_bounds(rows, shards, batch_size), shard_shares(shards, batch_size)
    steps = steps_per_epoch(rows, batch_size)
    assert shares.sum() == batch_size
    assert (bounds[0], bounds[-1]) == (0, rows)
    drawn = []
    for step in range(steps):
        batch = np.concatenate(
            [
                first + batch_rows(seed, 1, shard, step, stop - first, share)
                for shard, (first, stop, share) in enumerate(zip(bounds[:-1], bounds[1:], shares))
            ]
        )
        if step < steps - 1:
            assert len(batch) == batch_size
        drawn.append(batch)
    assert sorted(np.concatenate([[], *drawn])) == list(range(rows))
    for shard, share in enumerate(shares):
        assert not len(batch_rows(seed, 1, shard, steps, bounds[shard + 1] - bounds[shard], share))


def test_shards_are_of_even_size() -> None:
    assert set(np.diff(shard_bounds(1_000_003, 8, 1024))) <= {125_000, 125_001}


def test_more_shards_than_rows_in_a_batch_leaves_some_empty() -> None:
    sizes = np.diff(shard_bounds(100, 8, 3))
    assert sorted(sizes[sizes > 0]) == [33, 33, 34]


def test_no_overflow_with_many_rows() -> None:
    bounds = shard_bounds(10**15, 64, 10**6)
    assert bounds[-1] == 10**15
    assert (np.diff(bounds) == 10**15 // 64).all()


def test_a_batch_depends_on_its_key_alone() -> None:
    order = Order(seed=3, shard=2, rows=1000, share=64)
    later = order.batch(1, 5)
    assert (order.batch(0, 5) != later).any()
    assert (order.batch(1, 5) == later).all()
    assert (batch_rows(3, 1, 2, 5, 1000, 64) == later).all()


@pytest.mark.parametrize("other", [(4, 2), (3, 1)], ids=["seed", "shard"])
def test_seeds_and_shards_have_orders_of_their_own(other: tuple[int, int]) -> None:
    mine = Order(3, 2, 1000, 64).epoch(0)
    assert (Order(*other, 1000, 64).epoch(0) != mine).any()


def test_without_shuffling_rows_keep_their_order() -> None:
    order = Order(0, 0, 5, 2, shuffle=False)
    assert [order.batch(7, step).tolist() for step in range(4)] == [[0, 1], [2, 3], [4], []]


def test_permutations_are_what_they_were() -> None:
    # Models in the world depend on these; a change here is a change of every trained model.
    assert permutation(8, 0, "order", 0, 0).tolist() == [2, 3, 1, 4, 0, 7, 5, 6]
    assert generator(0, "shard", 1).bit_generator.random_raw() == 1349008250679334898


def test_permutations_are_uniform() -> None:
    places = np.array([permutation(6, seed) for seed in range(6000)])
    counts = np.array([np.bincount(places[:, place], minlength=6) for place in range(6)])
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 5 / 6)


def test_keys_are_told_apart() -> None:
    keys = [(1,), (1, 0), (0, 1), (10,), ("1", "0"), (1, "shard")]
    assert len({generator(*key).integers(1 << 62) for key in keys}) == len(keys)


@pytest.mark.parametrize(("rows", "shards", "batch_size"), [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_numbers_out_of_range_are_refused(rows: int, shards: int, batch_size: int) -> None:
    with pytest.raises(ParameterError, match="or more"):
        shard_bounds(rows, shards, batch_size)
