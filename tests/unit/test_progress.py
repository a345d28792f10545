"""Progress: a line for each finished stage where piped, a live table on a terminal, nothing when off."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from headwater.runtime.progress import (
    VISIBLE_STAGES,
    LiveDisplay,
    progress_display,
    seconds_left,
    totals_line,
    visible_stages,
)
from headwater.runtime.snapshot import Snapshot, StageSnapshot


def stage(id: int, done: int, total: int = 4, running: int = 0) -> StageSnapshot:
    state = "finished" if done == total else "running" if running or done else "waiting"
    return StageSnapshot(id, f"scan > step {id}", state, done, total, running, 1000 * done, 2048 * done)


def snapshot(*stages: StageSnapshot, elapsed: float = 2.0, lost: int = 0, retried: int = 0) -> Snapshot:
    return Snapshot("run", elapsed, 4 - lost, 1, lost, retried, stages)


def written(stream: io.StringIO, *snapshots: Snapshot, progress: bool | None = True) -> list[str]:
    with progress_display(progress, stream) as observe:
        for one in snapshots:
            observe(one)
    return stream.getvalue().splitlines()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def test_piped_progress_is_one_line_for_each_finished_stage():
    lines = written(
        io.StringIO(),
        snapshot(stage(0, 1), stage(1, 0)),
        snapshot(stage(0, 4), stage(1, 0)),
        snapshot(stage(0, 4), stage(1, 2), elapsed=75.0),
        snapshot(stage(0, 4), stage(1, 4), elapsed=75.0),
    )
    assert len(lines) == 2
    assert re.search(r"2\.0 s\] stage 1/2 done: scan > step 0: 4 partitions, 4\.0k rows, 8\.0 KiB", lines[0])
    assert re.search(r"1:15\] stage 2/2 done: scan > step 1", lines[1])
    assert not any("\x1b" in line for line in lines)


def test_progress_is_shown_by_default_only_on_a_terminal(terminal):
    done = snapshot(stage(0, 4))
    assert written(io.StringIO(), done, progress=None) == []
    assert written(terminal, done, progress=None) != []


def test_progress_is_silent_when_off(terminal):
    assert written(terminal, snapshot(stage(0, 4)), progress=False) == []


def test_a_function_gets_every_snapshot():
    seen: list[Snapshot] = []
    one = snapshot(stage(0, 1))
    with progress_display(seen.append) as observe:
        observe(one)
    assert seen == [one]


def test_the_live_table_ends_with_the_last_state(terminal):
    with progress_display(True, terminal) as observe:
        observe(snapshot(stage(0, 1, running=2)))
        observe(snapshot(stage(0, 4), stage(1, 1, running=1), elapsed=9.0))
    last = terminal.getvalue().split("\x1b[1A")[-1]
    assert "scan > step 0" in last
    assert "4/4" in last
    assert "1/4" in last
    assert "1/2 stages, 1 task on 4 workers, 9.0 s" in last


def test_the_live_table_is_repainted_ten_times_a_second_at_most(terminal):
    now = [0.0]
    display = LiveDisplay(Console(file=terminal, force_terminal=True), clock=lambda: now[0])
    display(snapshot(stage(0, 1)))
    first = len(terminal.getvalue())
    display(snapshot(stage(0, 2)))
    assert len(terminal.getvalue()) == first
    now[0] = 0.2
    display(snapshot(stage(0, 2)))
    assert len(terminal.getvalue()) > first
    display.close()


def test_a_terminal_is_left_usable_when_the_run_raises(terminal):
    def fail(observe):
        observe(snapshot(stage(0, 1)))
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"), progress_display(True, terminal) as observe:
        fail(observe)
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")


def test_time_left_is_told_once_it_means_something():
    assert seconds_left(snapshot(stage(0, 1, total=100))) is None
    assert seconds_left(snapshot(stage(0, 4), stage(1, 0), elapsed=3.0)) == pytest.approx(3.0)
    assert seconds_left(snapshot()) is None


def test_losses_are_told():
    assert "1 worker lost, 3 tasks retried" in totals_line(snapshot(stage(0, 1), lost=1, retried=3))
    assert "lost" not in totals_line(snapshot(stage(0, 1)))


def test_a_long_plan_shows_its_running_stages():
    stages = (
        *(stage(i, 4) for i in range(30)),
        stage(30, 1, running=1),
        *(stage(i, 0) for i in range(31, 60)),
    )
    shown = visible_stages(stages)
    assert len(shown) == VISIBLE_STAGES
    assert 30 in [s.id for s in shown]
    assert [s.id for s in shown] == sorted(s.id for s in shown)
