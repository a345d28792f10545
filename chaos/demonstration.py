"""demonstrate: the demo's two runs: a pipeline that trains, and again with a node killed in the middle of the training.

The driver is this process, so that its progress is seen. Nodes are processes of their own, so that one can be killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ParameterError
from ..planner.options import PlanOptions
from ..runtime.display import plural, seconds_text
from ..runtime.fault_points import TRAIN_STEP
from ..runtime.progress import Observer, progress_display
from ..runtime.report import RunReport
from ..runtime.snapshot import Snapshot
from ..session import RunResult, Session
from .cluster import ChaosCluster
from .injector import Injected, Injector
from .schedule import parse_fault

_LOOK_SECONDS = 0.005


@dataclass(frozen=True)
class Demonstration:
    """What the two runs gave.

    Attributes:
        clean, broken: their reports.
        step: before the end of which the node was to be killed, counted from 0.
        killed: what happened, with the victim and when; None if the training never came so far.
        pause: seconds from the kill until the driver heard of a later step; None if it heard of none.
    """

    clean: RunReport
    broken: RunReport
    step: int
    killed: Injected | None
    pause: float | None

    @property
    def equal(self) -> bool:
        """Whether the node was killed, and every output has the digest of the clean run all the same."""
        return self.killed is not None and not self.differing

    @property
    def differing(self) -> list[str]:
        """Outputs whose digests differ."""
        clean, broken = _digests(self.clean), _digests(self.broken)
        return sorted(name for name in clean.keys() | broken.keys() if clean.get(name) != broken.get(name))

    @property
    def training(self) -> Mapping[str, Any]:
        """What happened to the gang, see `TrainingLog`; empty if nothing was trained."""
        return next((stage.training for stage in self.broken.stages if stage.training is not None), {})


def demonstrate(
    clean: Mapping[str, Any],
    broken: Mapping[str, Any],
    step: int,
    *,
    nodes: int = 4,
    options: PlanOptions | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
    show: Callable[[RunResult], None] = lambda result: None,
) -> Demonstration:
    """Run a pipeline twice on a cluster of its own, the second time with a node killed in a step of its training.

    The node's processes get a SIGKILL, and its scratch folder is deleted: blocks, shards and model are gone with it.
    The only node of a cluster is replaced, by an empty one.

    Args:
        clean, broken: the outputs of the two runs; the same, but for where they write to.
        step: of the training, counted from 0; the node is killed within it.
        nodes: of the cluster, a worker process each.
        options: the planner's numbers.
        progress: whether to show the progress of the runs.
        tell: told what happens.
        show: given the second run's results while they are there.

    Returns:
        Both reports, and what was killed.

    Raises:
        ParameterError: ``step`` is negative.
        HeadwaterError: a run failed.
    """
    if step < 0:
        raise ParameterError(f"demonstrate(step={step}): give a step of the training, 0 or more.")
    with ChaosCluster(nodes, 1) as cluster:
        tell(f"Cluster: {plural(nodes, 'node')}, each a worker process with a scratch folder of its own.")
        with (
            Session(cluster.address, progress=progress, options=options) as session,
            session.run(clean, name="demo") as first,
        ):
            whole = first.report
        tell(
            f"The clean run took {seconds_text(whole.seconds)}. Now again, with a node killed in step {step}."
        )
        cluster.mend()
        fault = parse_fault("kill", f"node@{TRAIN_STEP}:{step}")
        injector = Injector(cluster, [fault], 0, lambda: None, replace=nodes == 1)
        with progress_display(progress) as observer, _breaking(injector):
            watch = _Watch(injector, observer)
            with (
                Session(cluster.address, progress=watch, options=options) as session,
                session.run(broken, name="demo") as second,
            ):
                show(second)
                killed = injector.injected[0] if injector.injected else None
                return Demonstration(whole, second.report, step, killed, watch.pause)


def demonstration_lines(found: Demonstration) -> list[str]:
    """Describe what was killed, what it cost, and the digests of both runs side by side.

    Args:
        found: what the two runs gave.

    Returns:
        Lines without newlines.
    """
    lines = _kill_lines(found)
    clean, broken = _digests(found.clean), _digests(found.broken)
    width = max(len(name) for name in ["digest of", *clean])
    lines.append(f"{'digest of'.ljust(width)}  {'clean run'.ljust(32)}  with a node killed")
    for name, digest in clean.items():
        other = broken.get(name, "")
        verdict = "equal" if digest == other else "DIFFERENT"
        lines.append(f"{name.ljust(width)}  {digest}  {other}  {verdict}")
    return lines


def _kill_lines(found: Demonstration) -> list[str]:
    log, killed = found.training, found.killed
    if killed is None:
        return [f"No node was killed: the training has no step {found.step}."]
    lines = [
        f"Killed: node {killed.victim}, by SIGKILL, its scratch deleted, in step {found.step} of {log['steps']}, "
        f"{seconds_text(killed.at)} into the run."
    ]
    if log["stalls"]:
        lines.append(
            f"Training: {plural(log['steps_lost'], 'step')} lost and repeated, the next one done "
            f"{seconds_text(sum(log['stalls']))} later, by {plural(log['members'], 'worker')}."
        )
        return lines
    pause = "" if found.pause is None else f"; it went on {seconds_text(found.pause)} after the kill"
    if log["adopted_step"] > 0:
        lost = found.step + 1 - log["adopted_step"]
        lines.append(
            f"Training: {plural(lost, 'step')} lost and repeated. The node had coordinated the others, so another "
            f"worker took over{pause}."
        )
    else:
        lines.append(f"Training: nobody else knew its state, so it began anew, from lineage{pause}.")
    return lines


def _digests(report: RunReport) -> dict[str, str]:
    return {name: output.digest for name, output in report.outputs.items()}


@contextmanager
def _breaking(injector: Injector) -> Iterator[None]:
    """Let faults happen beside what is done within. What it starts ends with it, as it dies with its thread."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(_LOOK_SECONDS):
            injector.step(0.0)

    thread = threading.Thread(target=work, name="demo faults", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        injector.end()


class _Watch:
    """An observer that passes snapshots on, and sees when the training goes on after the kill."""

    def __init__(self, injector: Injector, observer: Observer):
        self._injector, self._observer = injector, observer
        self._before: list[Mapping[str, float]] | None = None
        self._killed_at: float | None = None
        self.pause: float | None = None

    def __call__(self, snapshot: Snapshot) -> None:
        self._observer(snapshot)
        figures, now = [stage.metrics for stage in snapshot.stages], time.monotonic()
        if self._before is None:
            self._injector.begin()  # the run's time is counted from here
        if not self._injector.injected:
            self._before = figures
        elif self._killed_at is None:
            self._killed_at, self._before = now, figures
        elif self.pause is None and figures != self._before:
            self.pause = now - self._killed_at
