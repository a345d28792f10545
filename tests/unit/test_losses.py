"""The ledger of losses: what each cost, and when it was made good."""

from __future__ import annotations

from headwater.runtime.losses import Losses


def test_a_partition_counts_for_the_latest_loss_once():
    losses = Losses()
    first = losses.begin("died", "node a", 1.0, silent=0.5)
    losses.need([((0, 1), 10), ((0, 2), 20)])
    second = losses.begin("died", "node b", 2.0)
    losses.need([((0, 2), 20), ((1, 0), 5)])
    assert (first.minimum, first.minimum_bytes) == (2, 30)
    assert (second.minimum, second.minimum_bytes) == (1, 5)
    assert sorted(losses.missing) == [(0, 1), (0, 2), (1, 0)]


def test_a_loss_is_recovered_when_the_last_of_it_is_there_again():
    losses = Losses()
    loss = losses.begin("died", "node a", 1.0)
    losses.need([((0, 1), 10), ((0, 2), 20)])
    losses.made((0, 1), 11, 0.5, now=3.0)
    assert loss.recovered is None
    losses.returned((0, 2), now=4.0)
    assert loss.recovered == 4.0
    assert (loss.rerun, loss.rerun_bytes, loss.rerun_seconds, loss.returned) == (1, 11, 0.5, 1)
    assert losses.missing == []


def test_what_is_lost_again_while_it_is_missing_counts_once_and_afterwards_anew():
    losses = Losses()
    first = losses.begin("died", "node a", 1.0)
    losses.need([((0, 1), 10)])
    losses.made((0, 1), 10, 0.5, now=2.0)
    second = losses.begin("died", "node b", 3.0)
    losses.need([((0, 1), 10)])
    assert (first.minimum, second.minimum) == (1, 1)
    assert first.recovered == 2.0
    assert second.recovered is None


def test_results_that_nobody_missed_change_nothing():
    losses = Losses()
    loss = losses.begin("died", "node a", 1.0)
    losses.made((0, 1), 10, 0.5, now=2.0)
    losses.returned((0, 2), now=2.0)
    assert (loss.rerun, loss.returned, loss.rerun_seconds) == (0, 0, 0.0)


def test_needs_without_a_known_loss_are_noted_all_the_same():
    losses = Losses()
    losses.need([((0, 1), 10)])
    assert [(loss.cause, loss.minimum) for loss in losses.all] == [("unreadable", 1)]
