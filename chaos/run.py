"""run_under: run a pipeline once under faults, and hold the outcome against a clean run of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import NonDeterministicError, RunFailedError
from .cluster import ChaosCluster
from .driver import DriverHandle
from .driver_process import DriverSpec
from .injector import Injected, Injector
from .schedule import Fault

#: bytes of scratch a node may use; a full disk is one where somebody else has taken as many
QUOTA_BYTES = 4 << 30
#: seconds that a run may take
LIMIT_SECONDS = 120.0
#: most drivers of one run
_DRIVERS = 20
_STEP_SECONDS = 0.005


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        state: "finished", "failed" or "timed out".
        seconds: from the moment the first driver had joined the cluster to the last word of the last one.
        report: of the last driver, as `RunReport.to_dict` gives; None if there is none.
        rows: digest of each output's rows as its user reads them.
        files: digest of the bytes of every file written, by path.
        error: why it failed, with the traceback.
        drivers: how many drivers it took.
        nodes: ids of those that were there when it ended, and so had to be cleaned up.
    """

    state: str
    seconds: float
    report: Mapping[str, Any] | None = None
    rows: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    drivers: int = 1
    nodes: Sequence[str] = ()

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each output, as the report tells it."""
        outputs = (self.report or {}).get("outputs", {})
        return {name: output["digest"] for name, output in outputs.items()}


@dataclass(frozen=True)
class ChaosResult:
    """A run under faults beside the clean one.

    Attributes:
        faults: what was planned.
        injected: what happened, with victims and times.
        missed: planned faults whose moment never came.
        outcome, clean: of the two runs.
        differences: what isn't the same; nothing, if all is well.
        orphans: processes that the run left.
        leftovers: files that the run left on nodes that were there when it ended, and not hung, by node.
    """

    faults: Sequence[Fault]
    injected: Sequence[Injected]
    missed: Sequence[Fault]
    outcome: Outcome
    clean: Outcome
    differences: Sequence[str]
    orphans: Sequence[int]
    leftovers: Mapping[str, Sequence[str]]

    @property
    def equal(self) -> bool:
        """Whether the run finished with the same bytes as the clean one."""
        return not self.differences

    @property
    def ok(self) -> bool:
        """Whether it also made no more again than it had to, and left nothing behind."""
        return self.equal and self.minimal and not self.orphans and not self.leftovers

    @property
    def minimal(self) -> bool:
        """Whether no more was made again than the lineage graph asks for."""
        return self.rerun <= self.minimum

    @property
    def recovery(self) -> Mapping[str, Any]:
        """The report's recovery ledger."""
        return (self.outcome.report or {}).get("recovery", {})

    @property
    def losses(self) -> Sequence[Mapping[str, Any]]:
        """The ledger's losses, as `runtime.losses.Loss` describes them."""
        return self.recovery.get("losses", ())

    @property
    def rerun(self) -> int:
        """Finished partitions that were made again."""
        return self.recovery.get("rerun", 0)

    @property
    def minimum(self) -> int:
        """How many had to be, by the lineage graph; those whose blocks came back in time don't count."""
        return self.recovery.get("minimum", 0) - self.recovery.get("returned", 0)


def run_clean(
    file: str, params: Mapping[str, str], cluster: ChaosCluster, limit: float = LIMIT_SECONDS
) -> Outcome:
    """Run a pipeline without faults.

    Args:
        file: ``FILE[:NAME]`` of the pipeline.
        params: its parameters, as texts.
        cluster: whole.
        limit: seconds it may take.

    Returns:
        The outcome of the second of two runs, when the processes are warm.

    Raises:
        RunFailedError: it doesn't even run without faults.
        NonDeterministicError: its two runs differ.
    """
    first, second = (_without_faults(file, params, cluster, limit) for _ in range(2))
    if differences := _differences(first, second):
        raise NonDeterministicError(
            "two runs without any fault differ, so there is nothing to compare with. `headwater check` finds "
            "functions that give different results for the same rows.\n" + "\n".join(differences)
        )
    return second


def run_under(
    file: str,
    params: Mapping[str, str],
    faults: Sequence[Fault],
    cluster: ChaosCluster,
    *,
    seed: int = 0,
    clean: Outcome | None = None,
    replace: bool = True,
    limit: float = LIMIT_SECONDS,
) -> ChaosResult:
    """Run a pipeline under faults and compare it with a clean run; the cluster is mended afterwards.

    Args:
        file: ``FILE[:NAME]`` of the pipeline. Its ``OPTIONS``, if there are any, are the planner's numbers.
            What it writes goes to the cluster's folder instead of where it would.
        params: its parameters, as texts.
        faults: what happens.
        cluster: whole.
        seed: decides who is hit.
        clean: outcome of a run without faults; None makes one.
        replace: whether dead nodes are replaced by fresh ones.
        limit: seconds it may take.

    Returns:
        Both outcomes and how they differ.
    """
    clean = clean or run_clean(file, params, cluster, limit)
    holder: list[DriverHandle] = []
    injector = Injector(cluster, faults, seed, lambda: holder[-1].kill(), replace, QUOTA_BYTES)
    try:
        outcome = _run(file, params, cluster, injector, limit, holder)
        present = [node for node in cluster.nodes if node.lives() and node.id in outcome.nodes]
        missed = injector.pending
        injector.end()
        cluster.resume_stopped()
        orphans, leftovers = cluster.settle(present)
    finally:
        injector.end()
        for driver in holder:
            driver.kill()
    cluster.mend()
    return ChaosResult(
        tuple(faults), tuple(injector.injected), tuple(missed), outcome, clean,
        tuple(_differences(clean, outcome)), tuple(orphans), leftovers,
    )  # fmt: skip


def _without_faults(file: str, params: Mapping[str, str], cluster: ChaosCluster, limit: float) -> Outcome:
    outcome = _run(file, params, cluster, Injector(cluster, (), 0, lambda: None), limit)
    cluster.mend()
    if outcome.state != "finished":
        raise RunFailedError(f"without any fault the run {outcome.state}:\n{outcome.error}")
    return outcome


def _run(
    file: str,
    params: Mapping[str, str],
    cluster: ChaosCluster,
    injector: Injector,
    limit: float,
    holder: list[DriverHandle] | None = None,
) -> Outcome:
    """Start drivers until one says how the run ended."""
    holder = [] if holder is None else holder
    sinks, journal = cluster.folder / "sinks", cluster.folder / "journal"
    for folder in (sinks, journal):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    began = deadline = None
    for number in range(1, _DRIVERS + 1):
        resume = _run_id(journal) if number > 1 else None
        spec = DriverSpec(
            file,
            cluster.address,
            str(journal),
            str(sinks),
            dict(params),
            QUOTA_BYTES,
            resume,
            cluster.device,
        )
        driver = DriverHandle(spec, cluster)
        holder.append(driver)
        share, last = 0.0, None
        while driver.lives():
            told = driver.next(_STEP_SECONDS)
            if told is not None:
                last = told
                if told["what"] == "running" and began is None:
                    began = time.monotonic()
                    deadline = began + limit
                    injector.begin()
                elif told["what"] == "progress":
                    share = told["share"]
                elif told["what"] in ("ended", "failed"):
                    driver_seconds = time.monotonic() - (began or time.monotonic())
                    _wait_for_end(driver)
                    return _outcome(told, driver_seconds, number)
            if began is not None:
                injector.step(share)
            if deadline is not None and time.monotonic() > deadline:
                driver.dump()
                driver.kill()
                error = f"after {limit:g} s; last heard: {last}\n{_tail(cluster)}"
                return Outcome("timed out", limit, error=error, drivers=number)
        if not driver.was_killed:
            error = f"the driver's process ended without a word:\n{_tail(cluster)}"
            return Outcome("failed", 0.0, error=error, drivers=number)
    return Outcome("failed", 0.0, error=f"{_DRIVERS} drivers were killed", drivers=_DRIVERS)


def _outcome(told: Mapping[str, Any], seconds: float, drivers: int) -> Outcome:
    if told["what"] == "ended":
        return Outcome(
            "finished", seconds, told["report"], told["rows"], told["files"], "", drivers, told["nodes"]
        )
    return Outcome("failed", seconds, told["report"], error=told["trace"], drivers=drivers)


def _wait_for_end(driver: DriverHandle, seconds: float = 30.0) -> None:
    """Let a driver close its session; it has said all it had to say."""
    deadline = time.monotonic() + seconds
    while driver.lives() and time.monotonic() < deadline:
        driver.next(_STEP_SECONDS)
    driver.kill()


def _tail(cluster: ChaosCluster) -> str:
    """The end of what the drivers have logged."""
    return (cluster.logs / "driver.log").read_text(errors="replace")[-4000:]


def _run_id(journal: Path) -> str | None:
    """The id of the only run in a folder of journals, if its journal has begun."""
    found = sorted(path.name for path in journal.iterdir() if path.is_dir())
    return found[0] if found else None


def _differences(clean: Outcome, outcome: Outcome) -> list[str]:
    """Say what isn't as in the clean run."""
    if outcome.state != "finished":
        return [f"the run {outcome.state}"]
    found = []
    for what in ("digests", "rows", "files"):
        before, after = getattr(clean, what), getattr(outcome, what)
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                found.append(f"{what} of {name}: {before.get(name)} clean, {after.get(name)} under faults")
    return found
