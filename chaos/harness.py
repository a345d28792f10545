"""Harness: several runs of one pipeline under faults, on one chaos cluster; what ``headwater chaos`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments import whole
from ..pipeline_file import load_pipeline
from .cluster import ChaosCluster
from .run import LIMIT_SECONDS, ChaosResult, run_clean, run_under
from .schedule import Fault, random_schedule, seed_of_run
from .text import repeat_text, result_record, result_text


@dataclass(frozen=True)
class ChaosPlan:
    """What to run, and what is to happen to it.

    Attributes:
        file: ``FILE[:NAME]`` of the pipeline.
        params: its parameters, as texts.
        faults: of every run; none draws one to three for each run.
        runs: how many.
        seed: of the first run.
        nodes: of the cluster.
        workers: processes of each node.
        replace: whether dead nodes are replaced by fresh ones.
        limit: seconds that a run may take.
        steps: of a training in the pipeline, to draw moments from.
        device: what may use GPUs, as in `Session`.
    """

    file: str
    params: Mapping[str, str]
    faults: Sequence[Fault] = ()
    runs: int = 1
    seed: int = 0
    nodes: int = 4
    workers: int = 1
    replace: bool = True
    limit: float = LIMIT_SECONDS
    steps: int = 0
    device: str = "auto"

    def faults_of(self, seed: int) -> list[Fault]:
        """The faults of the run with that seed."""
        return list(self.faults) or random_schedule(seed, self.nodes, steps=self.steps)

    def repeat(self, seed: int) -> str:
        """The command that repeats one run alone."""
        options: dict[str, Any] = {}
        if self.nodes != ChaosPlan.nodes:
            options["nodes"] = self.nodes
        if self.workers != ChaosPlan.workers:
            options["workers"] = self.workers
        if not self.replace:
            options["no-replace"] = True
        if self.steps:
            options["steps"] = self.steps
        if self.device != ChaosPlan.device:
            options["device"] = self.device
        return repeat_text(self.file, self.params, self.faults, seed, options)


@dataclass(frozen=True)
class ChaosRun:
    """One run of several: its number from 1, its seed, what came of it."""

    number: int
    seed: int
    result: ChaosResult
    repeat: str

    @property
    def text(self) -> str:
        """What a user reads of it."""
        return result_text(self.result, self.number, self.repeat)

    def record(self) -> dict[str, Any]:
        """The run as plain values."""
        return result_record(self.result, self.seed, self.repeat)


def chaos_runs(
    plan: ChaosPlan,
    folder: Path | None = None,
    started: Callable[[ChaosCluster], None] = lambda cluster: None,
) -> Iterator[ChaosRun]:
    """Run a pipeline clean, and then under faults as often as asked for.

    Args:
        plan: what to do.
        folder: for scratch, logs and journals; None takes one that is removed at the end.
        started: told of the cluster once it is up.

    Yields:
        Each run as it ends.

    Raises:
        HeadwaterError: the file holds no pipeline, or it doesn't run without faults.

    Example:
        .. code-block:: python

            plan = ChaosPlan("rides.py", {}, [parse_fault("kill", "node@50%")], runs=3)
            assert all(run.result.ok for run in chaos_runs(plan))
    """
    whole(plan.runs, "chaos", "runs", 1)
    whole(plan.nodes, "chaos", "nodes", 1)
    load_pipeline(plan.file).bind(dict(plan.params))  # errors of the file or its parameters come at once
    with ChaosCluster(plan.nodes, plan.workers, folder, plan.device) as cluster:
        started(cluster)
        clean = run_clean(plan.file, plan.params, cluster, plan.limit)
        for run in range(plan.runs):
            seed = seed_of_run(plan.seed, run)
            result = run_under(
                plan.file,
                plan.params,
                plan.faults_of(seed),
                cluster,
                seed=seed,
                clean=clean,
                replace=plan.replace,
                limit=plan.limit,
            )
            yield ChaosRun(run + 1, seed, result, plan.repeat(seed))
