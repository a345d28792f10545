"""The engines that the recovery benchmark compares: each runs the same job on nodes of its own.

A run is disturbed by a function that is called in a thread of its own when its moment has come.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import executions
import shuffle_job
from nodes import START_SECONDS, Nodes, surviving_workers_exist

#: how often a detection is looked for, in seconds
LOOK_SECONDS = 0.1
#: how often the moment of a fault is looked for, in seconds
DUE_SECONDS = 0.02

for noisy in ("distributed.shuffle", "distributed.client", "distributed.core"):
    logging.getLogger(noisy).setLevel(logging.CRITICAL)


@dataclass
class Outcome:
    """What became of one run.

    Attributes:
        seconds: it took.
        right: whether the answer was the right one.
        digest: of the output, in Headwater.
        error: why there is no answer.
        struck: whether the fault came before the end.
        progress: share of the tasks, or partitions, that were finished when the fault came.
        lost, recomputed: bytes.
        detected: seconds from the fault until the engine counted a worker as gone; None if it didn't.
        kept: share of the finished tasks that did not run again.
        detail: what the engine reports.
    """

    seconds: float = 0.0
    right: bool = False
    digest: str | None = None
    error: str | None = None
    struck: bool = False
    progress: float | None = None
    lost: int = 0
    recomputed: int = 0
    detected: float | None = None
    kept: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)


#: disturbs a run; gets the engine and the outcome in the making
Fault = Callable[["Engine", Outcome], None]


class Engine(Protocol):
    """Runs the job on its nodes, one run after the other."""

    name: str
    nodes: Nodes

    def open(self) -> None:
        """Start the nodes and connect to them."""

    def ready(self) -> None:
        """Replace sick nodes, wait for all, and run a small job, so that a run finds all warm."""

    def run(self, limit: float, fault: Fault | None, due: Callable[[], bool]) -> Outcome:
        """Run the job once.

        Args:
            limit: seconds after which the run is given up.
            fault: called in a thread.
            due: tells when the moment of the fault has come.
        """

    def workers_lost(self) -> int:
        """How many workers the engine has counted as gone in this run."""

    def progress(self) -> float:
        """Share of the run that is finished."""

    def close(self) -> None:
        """End the nodes."""


def disturbed(
    engine: Engine,
    work: Callable[[Outcome], None],
    limit: float,
    fault: Fault | None,
    due: Callable[[], bool],
) -> Outcome:
    """Run a job with a fault; give up, and end the nodes, if it takes too long.

    Args:
        engine: whose job it is.
        work: runs it and puts down what it gave; in a thread.
        limit: seconds until it is given up.
        fault: called in another thread, unless the job ends before.
        due: asked again and again whether the moment of the fault has come.

    Returns:
        The outcome.
    """
    outcome, over = Outcome(), threading.Event()
    failed: list[BaseException] = []

    def job() -> None:
        start = time.perf_counter()
        try:
            work(outcome)
        except BaseException as error:
            failed.append(error)
        finally:
            over.set()
            outcome.seconds = outcome.seconds or time.perf_counter() - start

    def strike() -> None:
        try:
            while not due():
                if over.wait(DUE_SECONDS):
                    return
            outcome.struck = not over.is_set()
            if outcome.struck and fault is not None:
                fault(engine, outcome)
        except Exception as error:
            outcome.detail["fault failed"] = repr(error)

    threads = [threading.Thread(target=work, daemon=True) for work in ([job, strike] if fault else [job])]
    for thread in threads:
        thread.start()
    if not over.wait(limit):
        outcome.error = f"gave up after {limit:.0f} s"
        engine.close()
    elif failed:
        first = (str(failed[0]).strip() or "no message").splitlines()[0]
        outcome.error = f"{type(failed[0]).__name__}: {first}"
    for thread in threads:
        thread.join(limit)
    return outcome


class HeadwaterEngine:
    """Headwater on its nodes, joined by a session."""

    name = "Headwater"

    def __init__(self, folder: Path, data: Path, small: Path, pause: float = 0.0, count: int = 4):
        self.folder, self.data, self.small, self.pause, self.count = folder, data, small, pause, count
        self.clean_bytes: dict[int, float] = {}
        self._snapshot: Any = None
        self._closed, self._running = True, False

    def open(self) -> None:
        import headwater as hw

        self.nodes = Nodes(self.folder / "nodes", self.count, surviving_workers_exist())
        self.session = hw.Session(
            self.nodes.address, progress=self._see, journal=str(self.folder / "journals")
        ).start()
        self._closed = False

    def ready(self) -> None:
        if self._closed:
            self.open()
        self.nodes.heal()
        deadline = time.monotonic() + START_SECONDS
        seen = 0
        while seen < self.count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{seen} of {self.count} nodes came up; see {self.nodes.folder}/log.txt")
            with self.session.run({"result": shuffle_job.in_headwater(self.small)}):
                seen = 0 if self._snapshot is None else self._snapshot.nodes
            if seen < self.count:
                time.sleep(LOOK_SECONDS)
        with self.session.run({"result": shuffle_job.in_headwater(self.small)}):
            pass

    def run(self, limit: float, fault: Fault | None, due: Callable[[], bool]) -> Outcome:
        self._snapshot, self.nodes.lost_bytes = None, 0

        def work(outcome: Outcome) -> None:
            start = time.perf_counter()
            job = {"result": shuffle_job.in_headwater(self.data, self.pause)}
            with self.session.run(job, name="recovery") as result:
                table = result.table("result")
                outcome.seconds = time.perf_counter() - start
                outcome.digest = result.digest("result")
                outcome.detail["answer"] = shuffle_job.answer_of(table)
                self._account(outcome, result.report)

        self._running = True
        outcome = disturbed(self, work, limit, fault, due)
        self._running = False
        outcome.detail["block bytes on killed nodes"] = self.nodes.lost_bytes
        losses = outcome.detail.get("recovery", {}).get("losses") or []
        # as recorded: a task that was under way may have left blocks that nothing counts on
        outcome.lost = sum(loss["lost_bytes"] for loss in losses) if losses else self.nodes.lost_bytes
        if outcome.error is not None:
            self.close()
        return outcome

    def _account(self, outcome: Outcome, report: Any) -> None:
        told = report.to_dict()
        if not self.clean_bytes:
            self.clean_bytes = {s["id"]: s["bytes_out"] / max(1, s["partitions"]) for s in told["stages"]}
        rerun = {int(stage): len(found) for stage, found in told["recovery"]["partitions_rerun"].items()}
        outcome.recomputed = int(sum(self.clean_bytes[stage] * count for stage, count in rerun.items()))
        outcome.detail |= {"recovery": told["recovery"], "journal_bytes": told["journal_bytes"]}
        done = outcome.detail.get("partitions done")
        if done:
            outcome.kept = max(0.0, 1 - sum(rerun.values()) / done)

    def workers_lost(self) -> int:
        return 0 if self._snapshot is None else self._snapshot.workers_lost

    def progress(self) -> float:
        return self.partitions_done() / max(1, sum(stage.total for stage in self._stages()))

    def partitions_done(self) -> int:
        """How many partitions, of all stages, are finished."""
        return sum(stage.done for stage in self._stages())

    def _stages(self) -> tuple[Any, ...]:
        return () if self._snapshot is None else self._snapshot.stages

    def _see(self, snapshot: Any) -> None:
        self._snapshot = snapshot

    def close(self) -> None:
        steps = [self.nodes.close, self.session.close] if not self._closed else []
        self._closed = True
        for step in steps if self._running else reversed(steps):  # a run that is given up ends with its nodes
            with contextlib.suppress(Exception):
                step()


class DaskEngine:
    """Dask DataFrame on its nodes.

    Args:
        folder, data, small, pause, count: as of `HeadwaterEngine`.
        method: of the shuffle: "p2p" or "tasks".
        data_bytes: of all rows.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        small: Path,
        method: str,
        data_bytes: int,
        pause: float = 0.0,
        count: int = 4,
    ):
        self.name = f"Dask {method}"
        self.folder, self.data, self.small, self.pause, self.count = folder, data, small, pause, count
        self.method, self.partition_bytes = method, data_bytes // shuffle_job.PARTITIONS
        self._closed = True

    def open(self) -> None:
        from distributed import Client

        self.nodes = Nodes(self.folder / "nodes", self.count)
        self.client = Client(self.nodes.address, set_as_default=False, timeout=START_SECONDS)
        executions.watch(self.client, self.partition_bytes)
        self._closed = False

    def ready(self) -> None:
        if self._closed:
            self.open()
        self.nodes.heal()
        self.client.wait_for_workers(self.count, timeout=START_SECONDS)
        for _ in range(2):
            self.client.compute(shuffle_job.in_dask(self.small, self.method)).result(START_SECONDS)

    def run(self, limit: float, fault: Fault | None, due: Callable[[], bool]) -> Outcome:
        executions.reset(self.client)

        def work(outcome: Outcome) -> None:
            future = self.client.compute(shuffle_job.in_dask(self.data, self.method, self.pause))
            try:
                outcome.detail["answer"] = shuffle_job.answer_of(future.result(limit))
            finally:
                future.release()

        outcome = disturbed(self, work, limit, fault, due)
        with contextlib.suppress(Exception):  # a scheduler that was replaced counts nothing
            found = executions.figures(self.client)
            outcome.lost, outcome.recomputed = found["lost"], found["recomputed"]
            outcome.detail |= {name: found[name] for name in ("tasks", "executions", "rerun", "lost_results")}
        if outcome.error is not None:
            self.close()
        return outcome

    def workers_lost(self) -> int:
        return len(executions.figures(self.client)["left"])

    def progress(self) -> float:
        found = executions.figures(self.client)
        return found["done"] / max(1, found["tasks"])

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(Exception):
            self.client.close(timeout=5)
        with contextlib.suppress(Exception):
            self.nodes.close()
