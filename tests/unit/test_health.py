"""When a worker is given up: rules over reports with made-up times."""

from __future__ import annotations

import pytest

from headwater.runtime.health import Report, Rules, Turns, Verdict, WorkerHealth
from headwater.runtime.workers.beacon import Pulse

RUNS, STOPPED = b"S", b"T"


def feed(health: WorkerHealth, until: float, state: str, idle_since: float | None = None, start: float = 0.0):
    """Send four lines a second; idle grows from a moment on, or stays 0. Return when each verdict first fell."""
    fell: dict[Verdict, float] = {}
    step = round(start * 4)
    while step / 4 <= until:
        now = step / 4
        health.heard(now, Report(state, 0.0 if idle_since is None else now - idle_since))
        fell.setdefault(health.judge(now), now)
        step += 1
    return fell


def test_worker_that_was_never_heard_gets_no_verdict():
    health = WorkerHealth(0.0)
    health.unanswered()
    assert health.judge(1000.0) is Verdict.WELL


def test_stopped_for_the_limit_is_hung_and_not_before():
    fell = feed(WorkerHealth(0.0), 13.0, "T", idle_since=10.0, start=10.0)
    assert fell == {Verdict.WELL: 10.0, Verdict.HUNG: 12.5}


@pytest.mark.parametrize("state", ["S", "R", "D", "t", "Z"])
def test_only_a_stop_is_a_hang(state: str):
    assert set(feed(WorkerHealth(0.0), 100.0, state, idle_since=0.0)) == {Verdict.WELL}


def test_stopped_now_but_seen_alive_lately_is_slow_not_hung():
    health = WorkerHealth(0.0)
    for step in range(400):
        health.heard(step / 4, Report("T", 0.09))
        assert health.judge(step / 4) is Verdict.WELL


def test_silent_beacon_is_a_doubt_and_a_death_only_if_the_worker_is_silent_too():
    health = WorkerHealth(0.0)
    health.heard(10.0, Report("S", 0.0))
    assert health.judge(11.4) is Verdict.WELL
    assert health.judge(11.5) is Verdict.DOUBTFUL
    assert health.judge(60.0) is Verdict.DOUBTFUL  # nobody has asked the worker yet
    health.unanswered()
    assert health.judge(12.4) is Verdict.DOUBTFUL  # refused at once: the beacon still has its time
    assert health.judge(12.5) is Verdict.UNREACHABLE
    assert health.silence(12.5) == 2.5


def test_beacon_that_died_alone_says_nothing_until_it_is_heard_again():
    health = WorkerHealth(0.0)
    health.heard(1.0, Report("S", 0.0))
    health.answered()
    health.unanswered()
    assert health.judge(500.0) is Verdict.WELL
    health.heard(500.0, Report("S", 0.0))
    health.unanswered()
    assert health.judge(503.0) is Verdict.UNREACHABLE


def test_line_that_arrives_late_ends_the_doubt():
    health = WorkerHealth(0.0)
    health.heard(1.0, Report("S", 0.0))
    health.unanswered()
    health.heard(3.4, Report("S", 0.0))
    assert health.judge(3.5) is Verdict.WELL
    assert health.judge(6.0) is Verdict.DOUBTFUL  # the old refusal doesn't count


def test_watcher_that_was_held_up_begins_all_windows_anew():
    health = WorkerHealth(0.0)
    health.heard(1.0, Report("T", 2.4))
    health.restart(60.0)
    assert health.judge(60.0) is Verdict.WELL
    health.heard(60.1, Report("T", 61.0))
    assert health.judge(60.1) is Verdict.WELL  # it may have been stopped together with the watcher
    health.unanswered()
    assert health.judge(62.0) is Verdict.DOUBTFUL
    health.heard(62.5, Report("T", 63.4))
    assert health.judge(62.5) is Verdict.HUNG


def test_silence_counts_what_the_beacon_counted():
    health = WorkerHealth(0.0)
    assert health.silence(9.0) == 0.0
    health.heard(10.0, Report("T", 2.0))
    assert health.silence(10.5) == 2.5
    health.heard(10.6, Report("S", 2.0))  # asleep is a sign of life
    assert health.silence(10.6) == 0.0


def test_own_limits():
    rules = Rules(hung=1.0)
    assert feed(WorkerHealth(0.0, rules), 3.0, "T", idle_since=0.0)[Verdict.HUNG] == 1.0


@pytest.mark.parametrize("line", [b"killed\n", b"alive\n", b"", b"T\n", b"T x\n", b"TT 1.0\n", b"\xff 1\n"])
def test_other_lines_are_no_reports(line: bytes):
    assert Report.parse(line) is None


def test_report_is_read_as_the_beacon_writes_it():
    assert Report.parse(b"T 2.531\n") == Report("T", 2.531)


def test_turns_tell_that_the_watcher_was_held_up():
    turns = Turns(0.0, gap=1.0)
    assert [turns.late(now) for now in (0.1, 0.9, 1.9, 3.0, 3.1)] == [False, False, False, True, False]


def test_pulse_stops_with_the_process():
    pulse = Pulse(0.0)
    for step in range(20):
        pulse.sample(step * 0.05, RUNS, (b"%d" % step,))
    for step in range(20, 80):
        pulse.sample(step * 0.05, STOPPED, (b"19",))
    assert pulse.idle(4.0) == pytest.approx(3.05)  # since the last sample in which it ran


@pytest.mark.parametrize(
    ("state", "used"),
    [(RUNS, b"7"), (b"t", b"7"), (b"D", b"7"), (STOPPED, b"8")],
    ids=["idle", "in a debugger", "waiting for a disk", "ran between two samples"],
)
def test_pulse_sees_life(state: bytes, used: bytes):
    pulse = Pulse(0.0)
    pulse.sample(0.05, STOPPED, (b"7",))
    pulse.sample(0.10, STOPPED, (b"7",))
    pulse.sample(0.15, state, (used,))
    assert pulse.idle(0.15) == 0.0


def test_pulse_begins_anew_when_the_beacon_was_held_up():
    pulse = Pulse(0.0)
    pulse.sample(0.05, STOPPED, (b"7",))
    pulse.sample(9.00, STOPPED, (b"7",))
    assert pulse.idle(9.0) == 0.0
