"""Backup tasks: what one slow worker of four costs, with backup tasks and without.

Partitions sleep in small steps, so that they take a worker's time and no processor's, and a worker that is stopped nine
tenths of the time takes ten times as long. It is slow from the start, or only from three quarters of the clean
time on, as stragglers at the end of a job are. What the other workers could do at best is the floor beside it.

    python benchmarks/backups.py --repeats 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import markdown
from nodes import Nodes, end_on_terminate, surviving_workers_exist

import headwater as hw
from headwater.errors import ParameterError
from headwater.runtime import slicing

#: seconds of one step; a worker that runs 10 ms of each 100 ms does about five in that time
STEP_SECONDS = 0.002
#: rows of a partition, each of which takes an equal part of its time; enough that they count as 1 MB
ROWS = 150_000
#: position of the slow worker
SLOW = 1


def work(batch: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Sleep in steps for as many rows as there are."""
    for _ in range(round(len(batch["id"]) * seconds / ROWS / STEP_SECONDS)):
        time.sleep(STEP_SECONDS)
    return batch


def job(partitions: int, seconds: float) -> hw.Dataset:
    """As many partitions of so many seconds, in batches of a tenth of that; a task carries some of them."""
    rows = hw.range(partitions * ROWS, partitions=partitions)
    slept = rows.map_batches(partial(work, seconds=seconds), schema=rows.schema, batch_rows=ROWS // 10)
    return slept.agg(total=hw.sum("id"))


def sessions(address: str, folder: Path) -> dict[str, hw.Session]:
    """A session with backup tasks and, where there is that option, one without."""
    found: dict[str, hw.Session] = {}
    for name, backups in {"with": True, "without": False}.items():
        try:
            session = hw.Session(
                address, progress=False, journal=str(folder / "journals"), backup_tasks=backups
            )
        except TypeError:
            print(
                f"this Headwater has no Session(backup_tasks={backups}); runs {name} backups use its default"
            )
            session = hw.Session(address, progress=False, journal=str(folder / "journals"))
        found[name] = session.start()
    return found


def timed(session: hw.Session, dataset: hw.Dataset, expected: int) -> dict[str, Any]:
    """Run the job: seconds, tasks of its first stage, and the report's section on recovery."""
    start = time.perf_counter()
    with session.run({"result": dataset}) as result:
        total = result.table("result")["total"][0].as_py()
        seconds = time.perf_counter() - start
        if total != expected:
            raise ParameterError(f"the job gave {total}, not {expected}.")
        told = result.report.to_dict()
        return {"seconds": seconds, "tasks": told["stages"][0]["tasks"], "recovery": told["recovery"]}


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Run clean, and slow with and without backups, in turns; runs by case."""
    folder = options.data.resolve() / "backups"
    dataset = job(options.partitions, options.seconds)
    rows = options.partitions * ROWS
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with Nodes(folder, options.nodes, surviving_workers_exist()) as nodes:
        by_name = sessions(nodes.address, folder)
        warm_up(by_name["with"], options.nodes)
        cases = [("clean", "with", None)]
        cases += [(f"slow from {at:.0%}", name, at) for at in options.slow_from for name in by_name]
        for turn in range(options.repeats):
            for what, name, at in cases:
                clean = statistics.median(r["seconds"] for r in found["clean"]) if found["clean"] else 0.0
                slow = nullcontext() if at is None else nodes.slow(SLOW, options.factor, at * clean)
                with slow:
                    run = timed(by_name[name], dataset, rows * (rows - 1) // 2)
                case = what if at is None else f"{what}, {name}"
                found[case].append(run)
                extra = wasted(run["recovery"])
                print(f"  turn {turn + 1}, {case}: {run['seconds']:.2f} s, extra work {extra}", flush=True)
        for session in by_name.values():
            session.close()
    return found


def warm_up(session: hw.Session, count: int) -> None:
    """Run small jobs until all workers are there and have what they need."""
    seen: set[str] = set()
    deadline = time.monotonic() + 90
    while len(seen) < count and time.monotonic() < deadline:
        with session.run({"result": job(8 * count, 0.02)}):
            pass
        seen = {worker.address for worker in session._executor.workers()}  # type: ignore[union-attr]


def wasted(recovery: dict[str, Any]) -> str:
    """Write how many backups there were, and what they cost."""
    if "backups" not in recovery:
        return "unknown"
    return f"{recovery['backups']} backups, {recovery['backup_seconds_wasted']:.2f} s wasted"


def rows_of(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> list[list[str]]:
    """Rows of the table."""

    def seconds(case: str) -> list[float]:
        return [run["seconds"] for run in found[case]]

    rows = [["clean", markdown.spread(seconds("clean")), "", ""]]
    work_seconds = options.partitions * options.seconds
    for at in options.slow_from:
        slow = f"slow from {at:.0%}"
        on, off = seconds(f"{slow}, with"), seconds(f"{slow}, without")
        floor = at + (1 - at) * options.nodes / (options.nodes - 1 + 1 / options.factor)
        to_clean = [a / b for a, b in zip(on, seconds("clean"))]
        over_floor = [ratio / floor for ratio in to_clean]
        told = [run["recovery"] for run in found[f"{slow}, with"]]
        extra = [one["backup_seconds_wasted"] / work_seconds for one in told if "backups" in one]
        twice = [
            run["recovery"]["backups"] / run["tasks"]
            for run in found[f"{slow}, with"]
            if "backups" in run["recovery"]
        ]
        rows += [
            [f"{slow}, with backups, seconds", markdown.spread(on), "", ""],
            [f"{slow}, without, seconds", markdown.spread(off), "", ""],
            [f"{slow}, without / with", markdown.spread([b / a for a, b in zip(on, off)]), ">= 1.44", ""],
            [f"{slow}, with / clean", markdown.spread(to_clean), "<= 1.15", f"{floor:.2f}"],
            [f"{slow}, with / floor", markdown.spread(over_floor), "", ""],
            [f"{slow}, seconds of attempts that lost / of all work", markdown.spread(extra), "<= 0.05", ""],
            [f"{slow}, tasks run twice / tasks", markdown.spread(twice), "<= 0.05", ""],
        ]
    return rows


def main() -> None:
    """Measure, print a table, write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.25, help="of a partition")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--factor", type=float, default=10.0, help="how many times slower the slow worker is")
    parser.add_argument("--slow-from", type=float, nargs="*", default=[0.0, 0.75], metavar="SHARE")
    parser.add_argument("--tasks-per-thread", type=int, help="instead of the engine's own way to cut tasks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one turn")
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    options.repeats = 1 if options.quick else options.repeats
    end_on_terminate()
    if options.tasks_per_thread:
        slicing.TASKS_PER_THREAD = options.tasks_per_thread
    found = measure(options)
    tasks = found["clean"][0]["tasks"]
    print(
        f"\n{options.partitions} partitions of {options.seconds:g} s in {tasks} tasks on {options.nodes} workers, one "
        f"{options.factor:g} times slower, {options.repeats} turns, {markdown.load()}; medians (least to most)\n"
    )
    print(markdown.table(["what", "measured", "goal", "floor"], rows_of(found, options)))
    if options.json:
        told = {"options": {k: str(v) for k, v in vars(options).items()}, "load": markdown.load()}
        options.json.write_text(json.dumps({**told, "runs": found}, indent=2, default=str))


if __name__ == "__main__":
    main()
