"""What a chaos run did, as text: the faults, the comparison, the recovery ledger, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.display import plural, seconds_text
from ..runtime.recovery_text import recovery_lines
from .injector import Injected
from .run import ChaosResult
from .schedule import Fault


def result_text(result: ChaosResult, number: int, repeat: str) -> str:
    """Describe one run.

    Args:
        result: of the run.
        number: of the run, from 1.
        repeat: the command that repeats it alone.

    Returns:
        Lines without a newline at the end.
    """
    outcome, clean = result.outcome, result.clean
    lines = [
        f"run {number}: {_verdict(result)}, {seconds_text(outcome.seconds)} ({seconds_text(clean.seconds)} clean)"
    ]
    lines += [f"    {_injected_text(injected)}" for injected in result.injected]
    lines += [f"    {fault}: its moment never came" for fault in result.missed]
    lines += [f"    {line}" for line in recovery_lines(result.recovery, outcome.seconds)]
    lines += [f"    DIFFERENT: {difference}" for difference in result.differences]
    if not result.minimal:
        lines.append(f"    MORE THAN NEEDED: {result.rerun} partitions made again, minimum {result.minimum}")
    lines += [f"    LEFT: process {pid}" for pid in result.orphans]
    lines += [
        f"    LEFT: {plural(len(files), 'file')} on {node}: {', '.join(files[:4])}"
        for node, files in result.leftovers.items()
    ]
    if not result.ok:
        lines += [f"    | {line}" for line in outcome.error.strip().splitlines()[-12:]]
        lines.append(f"    again: {repeat}")
    return "\n".join(lines)


def summary_text(results: Sequence[ChaosResult]) -> str:
    """Describe all runs in one line."""
    bad = sum(not result.ok for result in results)
    faults = sum(len(result.injected) for result in results)
    rerun = sum(result.rerun for result in results)
    verdict = "all with the bytes of the clean run" if not bad else f"{bad} of them NOT as the clean run"
    counts = (
        f"{plural(len(results), 'run')}, {plural(faults, 'fault')}, {plural(rerun, 'partition')} made again"
    )
    return f"{counts}: {verdict}."


def repeat_text(
    file: str, params: Mapping[str, str], faults: Sequence[Fault], seed: int, options: Mapping[str, Any]
) -> str:
    """Write the command that repeats one run alone.

    Args:
        file: ``FILE[:NAME]``.
        params: of the pipeline.
        faults: that were asked for; none if they were drawn by the seed.
        seed: of the run.
        options: further options that differ from their defaults, by name.

    Example:
        >>> repeat_text("rides.py", {"rows": "10"}, [], 7, {"nodes": 3})
        'headwater chaos rides.py --param rows=10 --seed 7 --nodes 3'
    """
    words = ["headwater", "chaos", file]
    for name, value in params.items():
        words += ["--param", f"{name}={value}"]
    for fault in faults:
        words += str(fault).split(" ")
    words += ["--seed", str(seed)]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)


def result_record(result: ChaosResult, seed: int, repeat: str) -> dict[str, Any]:
    """Describe a run as plain values, for JSON."""
    return {
        "seed": seed,
        "repeat": repeat,
        "ok": result.ok,
        "equal": result.equal,
        "state": result.outcome.state,
        "seconds": round(result.outcome.seconds, 3),
        "clean_seconds": round(result.clean.seconds, 3),
        "drivers": result.outcome.drivers,
        "faults": [
            {"fault": str(i.fault), "victim": i.victim, "at": i.at, "share": i.share} for i in result.injected
        ],
        "missed": [str(fault) for fault in result.missed],
        "digests": result.outcome.digests,
        "differences": list(result.differences),
        "orphans": list(result.orphans),
        "leftovers": {node: list(files) for node, files in result.leftovers.items()},
        "rerun": result.rerun,
        "minimum": result.minimum,
        "recovery": dict(result.recovery),
        "error": result.outcome.error,
    }


def _verdict(result: ChaosResult) -> str:
    if not result.equal:
        return f"NOT EQUAL, {result.outcome.state}"
    return "equal" if result.ok else "equal, but NOT CLEAN" if result.minimal else "equal, but NOT MINIMAL"


def _injected_text(injected: Injected) -> str:
    return f"{injected.fault} met {injected.victim} at {injected.at:.2f} s, {injected.share:.0%} done"
