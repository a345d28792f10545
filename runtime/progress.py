"""Progress of a run, for people: a live table on a terminal, one line for each finished stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .display import bytes_text, count_text, plural, seconds_text
from .snapshot import Snapshot, StageSnapshot

#: what a run reports its progress to
Observer = Callable[[Snapshot], None]

#: seconds between two repaints of the live table
REPAINT_SECONDS = 0.1

#: terminal columns that a stage's bar and figures take at most
FIGURES_WIDTH = 72

#: most stages in the live table; finished and waiting ones are left out first
VISIBLE_STAGES = 12


@contextmanager
def progress_display(progress: bool | Observer | None, stream: TextIO | None = None) -> Iterator[Observer]:
    """Give a run an observer that shows its progress, and tidy up after it.

    Args:
        progress: True shows progress, live on a terminal and as plain lines elsewhere; None shows it only on
            a terminal; False is silent; a function is called with each snapshot instead.
        stream: where to write; None is standard error.

    Yields:
        A function to call with each `Snapshot`. It is cheap to call often.
    """
    if callable(progress):
        yield progress
        return
    console = Console(file=stream or sys.stderr)
    if progress is False or (progress is None and not console.is_terminal):
        yield lambda _snapshot: None
    elif console.is_terminal:
        display = LiveDisplay(console)
        try:
            yield display
        finally:
            display.close()
    else:
        yield LineDisplay(stream or sys.stderr)


class LineDisplay:
    """Writes a line when a stage is done: how many partitions, rows, bytes, and when."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._told: set[int] = set()

    def __call__(self, snapshot: Snapshot) -> None:
        for number, stage in enumerate(snapshot.stages, start=1):
            if is_done(stage) and stage.id not in self._told:
                self._told.add(stage.id)
                self._stream.write(f"{stage_line(stage, number, len(snapshot.stages), snapshot.elapsed)}\n")
                self._stream.flush()


class Spans:
    """When each stage was first and last seen at work, in seconds of the run."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}

    def note(self, snapshot: Snapshot) -> None:
        """Take in where a run stands."""
        for stage in snapshot.stages:
            first, _ = self._seen.get(stage.id, (snapshot.elapsed, 0.0))
            if stage.state == "running" or (is_done(stage) and stage.id not in self._seen):
                self._seen[stage.id] = (first, snapshot.elapsed)

    def rate(self, stage: StageSnapshot) -> float | None:
        """Rows a second while the stage was at work; None before there is anything to tell."""
        first, last = self._seen.get(stage.id, (0.0, 0.0))
        return stage.rows / (last - first) if last > first and stage.rows else None


class LiveDisplay:
    """Repaints a table of stages in place while the run goes on."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._clock = clock
        self._painted = float("-inf")
        self._latest: Snapshot | None = None
        self._spans = Spans()

    def __call__(self, snapshot: Snapshot) -> None:
        self._latest = snapshot
        self._spans.note(snapshot)
        if self._clock() - self._painted >= REPAINT_SECONDS:
            self._paint()

    def close(self) -> None:
        """Paint the last state and leave it on the screen."""
        self._paint()
        self._live.stop()

    def _paint(self) -> None:
        if self._latest is not None:
            self._live.start()
            self._live.update(stage_table(self._latest, self._spans, self._live.console.width), refresh=True)
            self._painted = self._clock()


def is_done(stage: StageSnapshot) -> bool:
    """Whether a stage is finished."""
    return stage.state == "finished"


def stage_line(stage: StageSnapshot, number: int, count: int, elapsed: float) -> str:
    """Write a finished stage as one line."""
    size = f"{plural(stage.total, 'partition')}, {_rows(stage)}, {bytes_text(stage.bytes)}"
    return f"[{seconds_text(elapsed):>7}] stage {number}/{count} done: {stage.label}: {size}"


def metrics_text(stage: StageSnapshot) -> str:
    """Write the figures of a train stage's last step, as "  step 120  loss 0.43"; empty for other stages."""
    return "".join(f"  {name} {value:.6g}" for name, value in stage.metrics.items())


def _rows(stage: StageSnapshot) -> str:
    return f"{count_text(stage.rows)} row{'' if stage.rows == 1 else 's'}"


def seconds_left(snapshot: Snapshot) -> float | None:
    """Estimate how long a run still takes, from the share of partitions that are done.

    Args:
        snapshot: where the run stands.

    Returns:
        Seconds, or None while less than a twentieth is done and any figure would mislead.
    """
    done = sum(stage.done for stage in snapshot.stages)
    total = sum(stage.total for stage in snapshot.stages)
    if not total or done < max(1, total / 20):
        return None
    return snapshot.elapsed * (total - done) / done


def visible_stages(stages: tuple[StageSnapshot, ...]) -> tuple[StageSnapshot, ...]:
    """Choose the stages to show: running ones first, then the latest finished, then the next to start."""
    if len(stages) <= VISIBLE_STAGES:
        return stages
    running = [s for s in stages if s.state == "running"]
    finished = [s for s in reversed(stages) if is_done(s)]
    waiting = [s for s in stages if s.state == "waiting"]
    chosen = {s.id for s in [*running, *finished[:3], *waiting, *finished[3:]][:VISIBLE_STAGES]}
    return tuple(s for s in stages if s.id in chosen)


def stage_table(snapshot: Snapshot, spans: Spans, width: int = 120) -> Group:
    """Lay a snapshot out as the live table and a line of totals, labels cut so that figures fit."""
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(12, width - FIGURES_WIDTH))
    for justify in ("left", "right", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for stage in visible_stages(snapshot.stages):
        style = {"waiting": "dim", "finished": "green"}.get(stage.state, "")
        rate = spans.rate(stage)
        table.add_row(
            Text(f"{stage.label}{metrics_text(stage)}", style=style),
            ProgressBar(total=max(1, stage.total), completed=stage.done if stage.total else 1, width=12),
            f"{stage.done}/{stage.total}",
            _rows(stage),
            "" if rate is None else f"{count_text(rate)} rows/s",
            bytes_text(stage.bytes),
        )
    return Group(table, Text(totals_line(snapshot), style="bold"))


def totals_line(snapshot: Snapshot) -> str:
    """Write the run's totals, and the time it still takes, in one line."""
    done = sum(map(is_done, snapshot.stages))
    running = sum(stage.running for stage in snapshot.stages)
    parts = [
        f"{done}/{plural(len(snapshot.stages), 'stage')}",
        f"{plural(running, 'task')} on {plural(snapshot.workers, 'worker')}",
        seconds_text(snapshot.elapsed),
    ]
    if snapshot.workers_lost or snapshot.tasks_retried:
        lost = plural(snapshot.workers_lost, "worker")
        parts.append(f"{lost} lost, {plural(snapshot.tasks_retried, 'task')} retried")
    left = seconds_left(snapshot)
    if left is not None and done < len(snapshot.stages):
        parts.append(f"about {seconds_text(left)} left")
    return ", ".join(parts)
