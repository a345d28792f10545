"""Training that outlives its workers: what a step costs, and what a kill does, beside PyTorch's DDP over gloo.

The same perceptron (784-256-10), rows, batch and optimizer on two processes of one thread, whose exchange goes through
sockets of the loopback interface. All engines take turns; a ratio is to the run of the same turn.

Steps: seconds of a step. "bare" is Headwater's program and collectives in two plain processes, without what makes a
training recoverable; the ratio to it is the price of that.

Kills: a process is killed, with its folders, after about so many steps, once the gang is whole, and is replaced at
once. Steps are larger there (``--kill-batch``), so that a replacement has a chance to come before the next kill. DDP
gets the kills at the same steps; torchrun starts all its processes again, and they go on from the last checkpoint.
Goodput is steps times the seconds of a clean step, by the seconds that passed; so the time in which one process works
alone counts by half. Two processes on two cores: starting a replacement takes time from the one that is left. With a
spare node, three wait for work and two train. "Time in steps that count" is what wasn't stall or repetition.

    python benchmarks/training.py --repeats 3 --json training.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

import markdown
import mlp_job
import numpy as np
from mlp_job import Job
from nodes import end_on_terminate
from step_log import Cost, cost_of, step_cpu, step_seconds
from training_engines import DdpEngine, HeadwaterEngine, Order, Run, Victim, run_bare, versions

MEMBER: Victim = "member"
COORDINATOR: Victim = "coordinator"
#: a member is killed where one node more waits
SPARE = "Headwater, member, a spare node"

Figures = dict[str, list[float]]


class Benchmark:
    """Runs all engines in turns.

    Args:
        options: of the command line.
        headwater, ddp: the engines.
        folder: for files.
    """

    def __init__(self, options: argparse.Namespace, headwater: HeadwaterEngine, ddp: DdpEngine, folder: Path):
        self.options, self.headwater, self.ddp, self.folder = options, headwater, ddp, folder
        self.figures: Figures = defaultdict(list)

    def steps(self) -> None:
        """Measure the step of each engine, once."""
        options = self.options
        job = Job(self.folder / "mlp", options.rows, options.batch, options.optimizer)
        count, workers = options.steps, options.workers
        cases = {
            "DDP": lambda: self.ddp.run(job, count),
            "bare": lambda: run_bare(self.folder / "bare", job, count, workers, workers),
            "Headwater": lambda: self.headwater.run(job, count, workers),
            "Headwater, 8 shards": lambda: self.headwater.run(job, count, 8),
            "Headwater, NumPy": lambda: self.headwater.run(job, count, workers, numpy=True),
        }
        for name, run in cases.items():
            steps = run().steps
            seconds, cpu = step_seconds(steps, count // 5), step_cpu(steps, count // 5)
            self.figures[f"step of {name}"].append(seconds)
            self.figures[f"CPU of {name}"].append(cpu)
            say(f"{name}: {seconds * 1e3:.1f} ms a step, {cpu * 1e3:.1f} ms of CPU time")

    def kills(self) -> None:
        """Measure runs with kills of members and of the coordinator, and DDP with the same kills, once."""
        options = self.options
        job = Job(self.folder / "mlp", options.rows, options.kill_batch, options.optimizer)
        every, workers = options.kill_every, options.workers
        steps = every * (options.kills + 1) + every // 4
        # not at multiples of anything, as a checkpoint may just have been written there
        turn = len(self.figures[f"Headwater, {MEMBER}: goodput"])
        offsets = np.random.default_rng(turn).integers(-every // 4, every // 4, options.kills)
        places = [every * (n + 1) + int(offset) for n, offset in enumerate(offsets)]
        clean = {"Headwater": [self.headwater.run(job, every, workers)], "DDP": [self.ddp.run(job, every)]}
        runs = {}
        for victim in (MEMBER, COORDINATOR):
            orders = [Order(step, victim) for step in places]
            runs[f"Headwater, {victim}"] = self.headwater.run(job, steps, workers, orders)
        with HeadwaterEngine(self.folder / "spare", workers, 1) as spare:
            runs[SPARE] = spare.run(job, steps, workers, [Order(step, MEMBER) for step in places])
        same = [Order(kill.step, MEMBER) for kill in runs[f"Headwater, {MEMBER}"].kills]
        for interval in options.checkpoint_every:
            runs[f"DDP, checkpoint every {interval}"] = self.ddp.run(job, steps, same, interval)
        clean["Headwater"].append(self.headwater.run(job, every, workers))
        clean["DDP"].append(self.ddp.run(job, every))
        seconds = {
            name: statistics.mean(step_seconds(run.steps, 5) for run in c) for name, c in clean.items()
        }
        say(f"clean: Headwater {seconds['Headwater'] * 1e3:.0f} ms a step, DDP {seconds['DDP'] * 1e3:.0f} ms")
        for name, run in runs.items():
            self._put(name, run, seconds[name.partition(",")[0]])

    def _put(self, name: str, run: Run, clean: float) -> None:
        cost: Cost = cost_of(run.steps, run.kills, clean)
        self.figures[f"{name}: stalls"] += cost.stalls
        self.figures[f"{name}: lost"] += cost.lost
        self.figures[f"{name}: goodput"].append(cost.steps * clean / cost.seconds)
        self.figures[f"{name}: kept"].append(cost.kept_seconds / cost.seconds)
        self.figures[f"{name}: between"].append(cost.steps / max(1, len(run.kills)))
        self.figures[f"{name}: rate"].append(cost.steps / cost.seconds)
        stalls = ", ".join(f"{stall:.2f}" for stall in cost.stalls)
        goodput = cost.steps * clean / cost.seconds
        kills = f"{len(run.kills)} kills: stalls of {stalls} s, {sum(cost.lost)} steps lost"
        say(f"{name}, {kills}, goodput {goodput:.2f}")
        if len(run.kills) < self.options.kills:
            say(
                f"{name}: only {len(run.kills)} of {self.options.kills} kills came, as the gang was not whole before"
            )


def say(text: str) -> None:
    """Print a line on one run."""
    print(f"  {text}", flush=True)


def ratios(figures: Figures, name: str, other: str) -> list[float]:
    """Return the ratios of two cases, turn by turn."""
    return [a / b for a, b in zip(figures[name], figures[other])]


def rows_of(figures: Figures, options: argparse.Namespace) -> list[list[str]]:
    """Rows of the table."""
    rows = []
    if figures["step of DDP"]:
        for name in ("DDP", "bare", "Headwater", "Headwater, 8 shards", "Headwater, NumPy"):
            rows.append([f"ms a step, {name}", _ms(figures[f"step of {name}"]), ""])
            rows.append([f"ms of CPU time a step of one process, {name}", _ms(figures[f"CPU of {name}"]), ""])
        for name, goal in {"Headwater": "<= 1.10", "Headwater, 8 shards": "", "Headwater, NumPy": ""}.items():
            rows.append(
                [f"step, {name} / DDP", _ratio(ratios(figures, f"step of {name}", "step of DDP")), goal]
            )
        clean = ratios(figures, "step of Headwater", "step of bare")
        rows.append(["clean step, recoverable / bare", _ratio(clean), "<= 1.05"])
        cpu = ratios(figures, "CPU of Headwater", "CPU of bare")
        rows.append(["CPU time of a clean step, recoverable / bare", _ratio(cpu), ""])
    cases = {f"Headwater, {victim}": f"{victim} killed" for victim in (MEMBER, COORDINATOR)}
    cases[SPARE] = "member killed, one spare node"
    cases |= {
        f"DDP, checkpoint every {n}": f"DDP, checkpoint every {n} steps" for n in options.checkpoint_every
    }
    for case, text in cases.items():
        if not figures[f"{case}: stalls"]:
            continue
        goals = ("<= 3", "<= 1", ">= 0.90") if case == f"Headwater, {MEMBER}" else ("", "", "")
        lost = figures[f"{case}: lost"]
        rows += [
            [f"{text}: seconds to the next step", markdown.spread(figures[f"{case}: stalls"]), goals[0]],
            [
                f"{text}: steps lost a kill, mean (most)",
                f"{statistics.mean(lost):.1f} ({max(lost):.0f})",
                goals[1],
            ],
            [f"{text}: steps by kills", f"{statistics.mean(figures[f'{case}: between']):.0f}", ""],
            [f"{text}: goodput", markdown.spread(figures[f"{case}: goodput"]), goals[2]],
            [f"{text}: time in steps that count", markdown.spread(figures[f"{case}: kept"]), ""],
        ]
        if case.startswith("DDP"):
            rate = markdown.spread(ratios(figures, f"Headwater, {MEMBER}: rate", f"{case}: rate"))
            rows.append([f"steps a second under kills, Headwater / {text}", rate, ">= 2"])
    return rows


def _ms(seconds: list[float]) -> str:
    values = [second * 1e3 for second in seconds]
    spread = "" if len(values) == 1 else f" ({min(values):.1f} to {max(values):.1f})"
    return f"{statistics.median(values):.1f}{spread}"


def _ratio(values: list[float]) -> str:
    spread = "" if len(values) == 1 else f" ({min(values):.3f} to {max(values):.3f})"
    return f"{statistics.median(values):.3f}{spread}"


def main() -> None:
    """Generate, measure, print a table, write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_480)
    parser.add_argument("--batch", type=int, default=1024, help="rows of a batch")
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="adam")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--steps", type=int, default=400, help="of a run that measures steps; a fifth is warm-up"
    )
    parser.add_argument("--kills", type=int, default=4, help="in a run; 0 leaves those runs out")
    parser.add_argument("--kill-every", type=int, default=100, metavar="STEPS")
    parser.add_argument(
        "--kill-batch", type=int, default=10_240, help="rows of a batch where processes are killed"
    )
    parser.add_argument(
        "--checkpoint-every", type=int, nargs="*", default=[10, 50], metavar="STEPS", help="of DDP"
    )
    parser.add_argument("--no-steps", action="store_true", help="kills only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one turn of few steps, one kill")
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.steps, options.checkpoint_every = 1, min(options.steps, 100), [10]
        options.kills, options.kill_every = min(options.kills, 1), min(options.kill_every, 40)
    end_on_terminate()
    folder = options.data.resolve() / "training"
    folder.mkdir(parents=True, exist_ok=True)
    mlp_job.generate(folder / "mlp", options.rows)
    before = markdown.load()
    with HeadwaterEngine(folder / "headwater", options.workers) as headwater:
        benchmark = Benchmark(options, headwater, DdpEngine(folder, options.workers), folder)
        for turn in range(options.repeats):
            say(f"turn {turn + 1} of {options.repeats}")
            if not options.no_steps:
                benchmark.steps()
            if options.kills:
                benchmark.kills()
    print(
        f"\n784-256-10, {options.rows:,} rows, batch {options.batch} (kills: {options.kill_batch}), "
        f"{options.optimizer}, {options.workers} processes of one thread, {options.repeats} turns, {before} at the "
        f"start, {markdown.load()} at the end, {versions()}; medians (least to most)\n"
    )
    print(markdown.table(["what", "measured", "goal"], rows_of(benchmark.figures, options)))
    if options.json:
        told = {"options": {k: str(v) for k, v in vars(options).items()}, "load": markdown.load()}
        options.json.write_text(
            json.dumps({**told, "versions": versions(), "figures": benchmark.figures}, indent=2)
        )


if __name__ == "__main__":
    main()
