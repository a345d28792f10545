"""Which running attempt is backed up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.runtime.stragglers import (
    ADVANTAGE,
    FREE_BACKUPS,
    LEAST_GAIN,
    RunningAttempt,
    choose_backup,
    unit_seconds,
)


def running(elapsed=0.0, ahead=0.0, fresh=1.0, share=0.0) -> RunningAttempt:
    return RunningAttempt(elapsed, ahead, fresh, share)


def test_time_left_follows_from_the_share_that_was_read():
    assert running(elapsed=9.0, share=0.75).left == pytest.approx(3.0)
    assert running(elapsed=9.0, ahead=6.0, share=0.5).left == pytest.approx(3.0)
    assert running(elapsed=9.0, share=1.0).left == 0.0


def test_an_attempt_that_has_read_nothing_is_late_only_beyond_what_was_expected():
    assert running(elapsed=1.4).left == 0.0
    assert running(elapsed=4.9, ahead=3.0).left == 0.0  # it waits for another task
    assert running(elapsed=2.2).left >= ADVANTAGE


def test_the_attempt_that_gains_most_is_chosen():
    views = [running(3.0, share=0.5), running(8.0, share=0.2), running(5.0, share=0.3)]
    assert choose_backup(views, 0, 0.0, 100.0) == 1


def test_an_attempt_that_merely_runs_long_is_left_alone():
    assert choose_backup([running(100.0, fresh=5.0, share=0.96)], 0, 0.0, 1000.0) is None


def test_nothing_is_gained_by_backing_up_short_tasks():
    assert choose_backup([running(0.2, fresh=0.01, share=0.6)], 0, 0.0, 100.0) is None


def test_some_backups_are_free_and_those_beyond_have_a_budget():
    late = [running(50.0, fresh=2.0, share=0.1)]
    assert choose_backup(late, FREE_BACKUPS - 1, 10.0, 10.0) == 0
    assert choose_backup(late, FREE_BACKUPS, 10.0, 100.0) is None
    assert choose_backup(late, FREE_BACKUPS, 1.0, 100.0) == 0


def test_no_attempts_no_backup():
    assert choose_backup([], 0, 0.0, 0.0) is None


VIEWS = st.builds(RunningAttempt, *[st.floats(0, 1e4)] * 3, st.floats(0, 1))


@given(st.lists(VIEWS, max_size=6), st.integers(0, 5), st.floats(0, 1e4), st.floats(0, 1e6))
def test_a_backup_is_always_worth_it(views, started, spent, total):
    chosen = choose_backup(views, started, spent, total)
    if chosen is not None:
        assert views[chosen].left > ADVANTAGE * views[chosen].fresh
        assert views[chosen].left - views[chosen].fresh > LEAST_GAIN
        assert started < FREE_BACKUPS or spent + views[chosen].fresh <= 0.05 * total


def test_the_pace_of_a_stage_is_a_median_once_enough_is_known():
    assert unit_seconds([], 1) is None
    assert unit_seconds([(10, 1.0)], 1) == 0.1
    assert unit_seconds([(10, 1.0), (10, 1.0)], 100) is None
    assert unit_seconds([(10, 1.0), (10, 1.0), (10, 500.0)], 100) == 0.1


def test_an_attempt_that_has_slowed_down_is_late_whatever_it_did_before():
    healthy = RunningAttempt(elapsed=1.0, ahead=0.0, fresh=2.0, share=0.5)
    assert choose_backup([healthy], 0, 0.0, 100.0) is None
    stalled = RunningAttempt(elapsed=3.0, ahead=0.0, fresh=2.0, share=0.9, rate=0.0)
    assert choose_backup([stalled], 0, 0.0, 100.0) == 0
    crawling = RunningAttempt(elapsed=3.0, ahead=0.0, fresh=2.0, share=0.5, rate=0.05)
    assert choose_backup([crawling], 0, 0.0, 100.0) == 0
    steady = RunningAttempt(elapsed=1.0, ahead=0.0, fresh=2.0, share=0.5, rate=0.5)
    assert choose_backup([steady], 0, 0.0, 100.0) is None
