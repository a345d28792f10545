"""What failures cost: a shuffle of 1 GB on four nodes, Headwater beside Dask DataFrame, P2P and tasks.

A node is one worker process of one thread with folders of its own. It is killed with its folders at a share of the
engine's own median clean time (``--progress tasks``: of its finished tasks), and another is started in its place
right away. Faults and engines take turns; a ratio is to the clean run of the same turn. Every answer is checked, and
Headwater's digest against the clean run's. Bytes lost and recomputed are Headwater's block files, and Dask's results
as a plugin of its scheduler counts them.

Four workers on fewer cores flatter a recovery, as a dead one leaves its core to others. ``--pause 0.25 --gb 0.1``
makes nodes sleep rather than compute.

    python benchmarks/recovery.py --gb 1 --repeats 3 --json recovery.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import markdown
import shuffle_job
from nodes import end_on_terminate
from recovery_engines import LOOK_SECONDS, DaskEngine, Engine, Fault, HeadwaterEngine, Outcome

ROW_BYTES = 64
#: the node that things happen to
VICTIM = 1
#: how often a run is tried that ends before its fault comes
ATTEMPTS = 3

#: fault to engine to outcomes, in turns
Outcomes = dict[str, dict[str, list[Outcome]]]


def kill(engine: Engine, outcome: Outcome) -> None:
    """Kill a node and start another."""
    outcome.progress, lost = engine.progress(), engine.workers_lost()
    start = time.monotonic()
    engine.nodes.kill(VICTIM)
    outcome.detected = _noticed(engine, lost, start, 10.0)


def hang(cap: float) -> Fault:
    """Stop a node; if the engine doesn't notice within ``cap`` seconds, kill it, so that the run ends."""

    def fault(engine: Engine, outcome: Outcome) -> None:
        outcome.progress = engine.progress()
        lost, start = engine.workers_lost(), time.monotonic()
        engine.nodes.stop(VICTIM)
        outcome.detected = _noticed(engine, lost, start, cap)
        if outcome.detected is None:
            engine.nodes.kill(VICTIM)

    return fault


def kill_scheduler(engine: Engine, outcome: Outcome) -> None:
    """Kill the Dask scheduler and start another at the same address."""
    outcome.progress = engine.progress()
    if isinstance(engine, HeadwaterEngine):
        outcome.detail["partitions done"] = engine.partitions_done()
    engine.nodes.kill_scheduler()


def _noticed(engine: Engine, before: int, start: float, cap: float) -> float | None:
    while (took := time.monotonic() - start) < cap:
        if engine.workers_lost() > before:
            return took
        time.sleep(LOOK_SECONDS / 2)
    return None


def measure(engines: list[Engine], answer: shuffle_job.Answer, options: argparse.Namespace) -> Outcomes:
    """Run every engine through every fault, in turns."""
    faults: dict[str, tuple[Fault | None, float]] = {"clean": (None, 0.0)}
    faults |= {f"kill at {share:.0%}": (kill, share) for share in options.kills}
    if options.cap:
        faults["hang at 50%"] = (hang(options.cap), 0.5)
    if not options.no_scheduler:
        faults["scheduler killed at 50%"] = (kill_scheduler, 0.5)
    found: Outcomes = {name: defaultdict(list) for name in faults}
    for turn in range(options.repeats + 1):
        for name, (fault, share) in faults.items():
            for engine in engines:
                slow = fault is not None and fault not in (kill,) and not isinstance(engine, HeadwaterEngine)
                if (turn == 0 and fault is not None) or (slow and turn > 1):
                    continue  # the first turn is a warm-up; Dask's answer to these is the same each time
                outcome = one(engine, fault, share, found, answer, options)
                if turn:
                    found[name][engine.name].append(outcome)
                    tell(turn, name, engine.name, outcome)
    return found


def one(
    engine: Engine,
    fault: Fault | None,
    share: float,
    found: Outcomes,
    answer: shuffle_job.Answer,
    options: argparse.Namespace,
) -> Outcome:
    """Run an engine once, through one fault; an error of the engine is part of the outcome."""
    clean = [outcome.seconds for outcome in found["clean"][engine.name] if outcome.error is None]
    expected = statistics.median(clean) if clean else 0.0
    limit = max(options.limit, 10 * expected) + options.cap
    try:
        for _ in range(ATTEMPTS):
            engine.ready()
            outcome = engine.run(limit, fault, moment(engine, share, expected, options.progress))
            if fault is None or outcome.struck or outcome.error is not None:
                break
        else:
            outcome.error = f"ended before the fault came, {ATTEMPTS} times"
    except Exception as error:
        engine.close()
        return Outcome(error=f"{type(error).__name__}: {error}"[:200])
    outcome.right = outcome.error is None and outcome.detail.pop("answer", None) == answer
    if outcome.error is not None and outcome.kept is None and fault is kill_scheduler:
        outcome.kept = 0.0
    return outcome


def moment(engine: Engine, share: float, expected: float, progress: str) -> Callable[[], bool]:
    """Return what tells whether a share of a run, which starts now, is over."""
    end = time.monotonic() + share * expected
    if progress == "time":
        return lambda: time.monotonic() >= end
    return lambda: engine.progress() >= share


def tell(turn: int, fault: str, engine: str, outcome: Outcome) -> None:
    """Print a line on one run."""
    what = outcome.error or f"{outcome.seconds:.2f} s, {'right' if outcome.right else 'WRONG'}"
    more = "" if outcome.progress is None else f", fault at {outcome.progress:.0%} of the tasks"
    seen = "" if outcome.detected is None else f", noticed after {outcome.detected:.2f} s"
    bytes_ = f", lost {outcome.lost / 1e6:.0f} MB, made again {outcome.recomputed / 1e6:.0f} MB"
    print(
        f"  turn {turn}, {fault}, {engine}: {what}{more}{seen}{bytes_ if fault != 'clean' else ''}",
        flush=True,
    )


def ratios(found: Outcomes, fault: str, engine: str) -> list[float]:
    """Time by that of the clean run of the same turn, for the runs that gave an answer."""
    pairs = zip(found[fault][engine], found["clean"][engine])
    return [run.seconds / clean.seconds for run, clean in pairs if not run.error and not clean.error]


def again(runs: list[Outcome]) -> list[float]:
    """Bytes recomputed by bytes lost."""
    return [run.recomputed / run.lost for run in runs if run.lost and not run.error]


def cost_rows(found: Outcomes, shares: list[float]) -> list[list[Any]]:
    """Rows of the table of what kills cost."""
    rows: list[list[Any]] = []
    for engine, runs in found["clean"].items():
        taken = [run.seconds for run in runs if not run.error]
        rows.append(["clean", engine, markdown.spread(taken), "1", "-", "-", _failures(runs)])
    for share in shares:
        fault = f"kill at {share:.0%}"
        for engine, runs in found[fault].items():
            progress = [run.progress for run in runs if run.progress is not None]
            at = f"{statistics.median(progress):.0%}" if progress else "-"
            taken = [run.seconds for run in runs if not run.error]
            rows.append(
                [fault, engine, markdown.spread(taken), markdown.spread(ratios(found, fault, engine))]
                + [markdown.spread(again(runs)), at, _failures(runs)]
            )
    return rows


def _failures(runs: list[Outcome]) -> str:
    bad = [run.error or "wrong answer" for run in runs if not run.right]
    return f"{len(bad)} of {len(runs)}: {bad[0][:80]}" if bad else "0"


def other_rows(found: Outcomes, cap: float) -> list[list[Any]]:
    """Rows of the table of hangs and of the death of the scheduler."""
    rows: list[list[Any]] = []
    for engine, runs in found.get("hang at 50%", {}).items():
        seen = [run.detected for run in runs if run.detected is not None]
        missed = "-" if all(run.error for run in runs) else f"not within {cap:.0f} s"
        text = markdown.spread(seen) + " s" if seen else missed
        rows.append(["hang at 50%: noticed after", engine, text, _failures(runs)])
        if seen:
            taken = markdown.spread(ratios(found, "hang at 50%", engine))
            rows.append(["hang at 50%, no replacement: time / clean", engine, taken, _failures(runs)])
    fault = "scheduler killed at 50%"
    for engine, runs in found.get(fault, {}).items():
        kept = [run.kept for run in runs if run.kept is not None]
        share = f"{statistics.median(kept):.0%}" if kept else "-"
        rows.append([f"{fault}: finished tasks kept", engine, share, _failures(runs)])
        taken = markdown.spread(ratios(found, fault, engine))
        rows.append([f"{fault}: time / clean", engine, taken, _failures(runs)])
    return rows


def goal_rows(found: Outcomes, count: int) -> list[list[Any]]:
    """Rows of the table of Headwater's figures beside its goals; medians."""
    ours = HeadwaterEngine.name
    rows: list[list[Any]] = []

    def add(what: str, goal: str, values: list[float]) -> None:
        rows.append([what, goal, markdown.spread(values)])

    for fault in found:
        if fault.startswith("kill"):
            share = float(fault.split()[-1].rstrip("%")) / 100
            floor = 1 + share / count
            goal = "<= 1.25" if share == 0.5 else "-"
            add(f"time / clean, {fault} (floor {floor:.3f})", goal, ratios(found, fault, ours))
            add(f"bytes made again / lost, {fault}", "<= 1.05", again(found[fault][ours]))
            least = [_over_minimum(run) for run in found[fault][ours]]
            if any(value is not None for value in least):
                add(f"rerun / minimum, {fault}", "= 1", [value for value in least if value is not None])
    hung = found.get("hang at 50%", {}).get(ours, [])
    add("seconds to notice a hang", "<= 3", [run.detected for run in hung if run.detected is not None])
    killed = found.get("scheduler killed at 50%", {}).get(ours, [])
    add("finished tasks kept, scheduler killed", ">= 0.95", [r.kept for r in killed if r.kept is not None])
    return rows


def _over_minimum(run: Outcome) -> float | None:
    """Partitions made again by the fewest that would do, as the run's report counts them."""
    told = run.detail.get("recovery", {})
    return told["rerun"] / told["minimum"] if told.get("minimum") else None


def check(found: Outcomes) -> list[str]:
    """List what must not be: wrong answers, runs of Headwater that failed or gave another digest than clean ones."""
    ours = HeadwaterEngine.name
    wrong = [
        f"{engine}, {fault}: {run.error or 'wrong answer'}"
        for fault, by_engine in found.items()
        for engine, runs in by_engine.items()
        for run in runs
        if not run.right and (run.error is None or engine == ours or fault == "clean")
    ]
    digests = {r.digest for by in found.values() for r in by.get(ours, ()) if r.digest}
    return wrong + ([f"Headwater gave several digests: {sorted(digests)}"] if len(digests) > 1 else [])


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=1.0, help="bytes of rows in memory, in units of 1e9")
    parser.add_argument("--repeats", type=int, default=3, help="turns, after one of warm-up")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--kills", type=float, nargs="*", default=[0.25, 0.5, 0.75], metavar="SHARE")
    parser.add_argument("--progress", choices=["time", "tasks"], default="time", help="what a share is of")
    parser.add_argument("--engines", default="headwater,p2p,tasks")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep for each partition, twice")
    parser.add_argument(
        "--cap", type=float, default=20.0, help="seconds to wait for a hang's detection; 0: none"
    )
    parser.add_argument("--no-scheduler", action="store_true", help="leave the scheduler alone")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a run is given up")
    parser.add_argument("--quick", action="store_true", help="0.2 GB, one turn, kills at 50%% only")
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.quick:
        options.gb, options.repeats, options.kills = min(options.gb, 0.2), 1, [0.5]
    return options


def main() -> None:
    """Generate, measure, print tables, write the figures as JSON."""
    options = parse()
    end_on_terminate()
    base = options.data.resolve()
    data, small = base / f"shuffle-{options.gb:g}", base / "shuffle-small"
    rows = int(options.gb * 1e9) // ROW_BYTES
    answer = shuffle_job.generate(data, rows)
    shuffle_job.generate(small, 64_000)
    engines: list[Engine] = []
    for name in options.engines.split(","):
        folder = base / f"recovery-{name}"
        if name == "headwater":
            engines.append(HeadwaterEngine(folder, data, small, options.pause, options.nodes))
        else:
            size = rows * ROW_BYTES
            engines.append(DaskEngine(folder, data, small, name, size, options.pause, options.nodes))
    try:
        found = measure(engines, answer, options)
    finally:
        for engine in engines:
            engine.close()
    print(
        f"\n{options.gb:g} GB, {options.nodes} nodes of one thread, {options.repeats} turns, {markdown.load()}; "
        "medians (least to most). A fault comes at a share of the engine's own "
        f"{'median clean time' if options.progress == 'time' else 'tasks'}.\n"
    )
    head = [
        "what",
        "engine",
        "seconds",
        "time / clean",
        "bytes made again / lost",
        "tasks done then",
        "failed",
    ]
    print(markdown.table(head, cost_rows(found, options.kills)), end="\n\n")
    if other := other_rows(found, options.cap):
        print(markdown.table(["what", "engine", "measured", "failed"], other), end="\n\n")
    print(markdown.table(["Headwater", "goal", "measured"], goal_rows(found, options.nodes)), end="\n\n")
    if options.json:
        plain = {f: {e: [asdict(run) for run in runs] for e, runs in by.items()} for f, by in found.items()}
        told = {"options": {k: str(v) for k, v in vars(options).items()}, "load": markdown.load()}
        options.json.write_text(json.dumps({**told, "runs": plain}, indent=2, default=str))
    wrong = check(found)
    print(
        "answers: "
        + ("\n  ".join(["WRONG", *wrong]) if wrong else "all right, and Headwater's digests equal")
    )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
