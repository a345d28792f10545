"""What readiness for failures costs when nothing fails: journal, fingerprints and heartbeats on, beside off.

Both run on the same worker processes, in pairs whose order alternates, and the median of the pairs' ratios is
what to read; CPU seconds of all processes move less than seconds. The journal is left out by the session's option.
The rest has no switch: for the runs without, workers count rows instead of hashing them, and what they started to
tell of their life is stopped.

    python benchmarks/overhead.py --scale 1 --repeats 15
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import datafiles
import markdown
import psutil
import shuffle_job
import timing
from engines import headwater_tpch
from nodes import HERE, end_on_terminate

import headwater as hw
from headwater.runtime.cluster import start_local

#: job to a pair of (seconds, CPU seconds) each, with and without
Pairs = dict[str, list[dict[str, tuple[float, float]]]]


class CountsRows:
    """Stands for a fingerprint, and only counts rows."""

    def __init__(self, schema: Any = None):
        self.rows = 0

    def update(self, table: Any) -> CountsRows:
        """Take in a table."""
        self.rows += table.num_rows
        return self

    def hexdigest(self) -> str:
        """Return the text of a fingerprint that says nothing of the content."""
        return f"{self.rows:x}-{0:032x}"


def protect(on: bool) -> int:
    """Switch fingerprints and heartbeats of the calling process on or off; how many of the latter there are."""
    from overhead import CountsRows  # this module by its name, as workers know it

    from headwater.lineage.fingerprint import Fingerprint
    from headwater.lineage.stream_fingerprint import StreamFingerprint
    from headwater.runtime.workers import run_task

    run_task.Fingerprint = Fingerprint if on else CountsRows  # type: ignore[misc,assignment]
    run_task.StreamFingerprint = StreamFingerprint if on else CountsRows  # type: ignore[misc,assignment]
    beacons = psutil.Process().children()
    for beacon in beacons:
        with suppress(psutil.NoSuchProcess):
            os.kill(beacon.pid, signal.SIGCONT if on else signal.SIGSTOP)
    return len(beacons)


def jobs(tpch_folder: Path, shuffle_folder: Path) -> dict[str, Callable[[], hw.Dataset]]:
    """The jobs by name."""
    return {
        "TPC-H Q1": lambda: headwater_tpch.q1(tpch_folder),
        "TPC-H Q3": lambda: headwater_tpch.q3(tpch_folder),
        "shuffle": lambda: shuffle_job.in_headwater(shuffle_folder),
    }


def measure(options: argparse.Namespace) -> tuple[Pairs, dict[str, dict[str, int]], int]:
    """Run all jobs in pairs; their times, journal figures of each job, and how many beacons there were."""
    base = options.data.resolve()
    tpch_folder = base / f"tpch-{options.scale:g}"
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    datafiles.tpch(tpch_folder, options.scale)  # by a program that lies beside this Python
    shuffle_folder = base / f"shuffle-{options.gb:g}"
    shuffle_job.generate(shuffle_folder, int(options.gb * 1e9) // 64)
    pairs: Pairs = defaultdict(list)
    journals: dict[str, dict[str, int]] = {}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    cluster, client = start_local(options.workers)
    address = cluster.scheduler_address
    with cluster, client:
        journal = str(base / "overhead-journals")
        sessions = {
            "with": hw.Session(address, progress=False, journal=journal).start(),
            "without": hw.Session(address, progress=False, journal=False).start(),
        }
        try:
            for turn in range(options.repeats + 1):
                for name, make in jobs(tpch_folder, shuffle_folder).items():
                    order = ["with", "without"] if turn % 2 else ["without", "with"]
                    pair = {}
                    for case in order:
                        beacons = sum(client.run(protect, case == "with").values())
                        report, pair[case] = timing.timed(lambda: run(sessions[case], make()))  # noqa: B023
                        if case == "with":
                            datasets = sum(stage["partitions"] > 0 for stage in report["stages"])
                            journals[name] = {"bytes": report["journal_bytes"], "datasets": datasets}
                    if turn:
                        pairs[name].append(pair)
                print(f"  turn {turn} of {options.repeats}{'' if turn else ' (warm-up)'}", flush=True)
        finally:
            client.run(protect, True)
            for session in sessions.values():
                session.close()
    return pairs, journals, beacons


def run(session: hw.Session, dataset: hw.Dataset) -> dict[str, Any]:
    """Run a job and fetch its rows; its report."""
    with session.run({"result": dataset}) as result:
        result.table("result")
        return result.report.to_dict()


def quartiles(values: list[float]) -> str:
    """Write a median and the quartiles around it."""
    if len(values) < 2:
        return markdown.spread(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def rows_of(pairs: Pairs, journals: dict[str, dict[str, int]]) -> list[list[Any]]:
    """Rows of the table."""
    rows: list[list[Any]] = []
    for name, taken in pairs.items():
        seconds, cpu = ([pair["with"][i] / max(pair["without"][i], 1e-3) for pair in taken] for i in (0, 1))
        told = journals[name]
        rows.append(
            [name, statistics.median(pair["with"][0] for pair in taken), quartiles(seconds), quartiles(cpu)]
            + [f"{told['bytes'] / 1e3:.1f} KB", f"{told['bytes'] / told['datasets'] / 1e3:.1f} KB"]
        )
    return rows


def main() -> None:
    """Generate, measure, print a table, write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", "--sf", type=float, default=1.0, help="of TPC-H")
    parser.add_argument("--gb", type=float, default=1.0, help="of the shuffle")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15, help="pairs of each job, after a warm-up")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, five pairs")
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.quick:
        options.scale, options.gb, options.repeats = 0.1, 0.1, min(5, options.repeats)
    end_on_terminate()
    pairs, journals, beacons = measure(options)
    print(
        f"\nTPC-H scale {options.scale:g}, shuffle of {options.gb:g} GB, {options.workers} workers with {beacons} "
        f"heartbeat processes, {options.repeats} pairs, {markdown.load()}; medians (quartiles); goal <= 1.03, "
        "and <= 10 KB a dataset (a stage's)\n"
    )
    head = ["job", "seconds", "time with / without", "CPU time with / without", "journal", "a dataset"]
    print(markdown.table(head, rows_of(pairs, journals)))
    if options.json:
        told = {"options": {k: str(v) for k, v in vars(options).items()}, "load": markdown.load()}
        options.json.write_text(json.dumps({**told, "pairs": pairs, "journals": journals}, indent=2))


if __name__ == "__main__":
    main()
