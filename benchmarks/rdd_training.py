"""The RDD paper's experiments with learning (Zaharia et al., NSDI 2012, figures 7, 9, 11 and 12), on one machine.

Figure 9: an iteration of logistic regression over 256 MB, parsed from text, decoded from binary blocks, and from
cache. From text it is a job that reads, parses and sums, without a block written; the others are steps of one
training, ``AllReduce(cache=0.0)`` and ``cache=1.0``. All compute the same, and that is checked. The workers are
processes of one node, as the paper's.

Figure 7: the first iteration, with reading, beside later ones. Figure 12: shares of the rows in the cache.

Figure 11: k-means of ten iterations on four nodes, one of them killed with its folders as the sixth begins, and not
replaced. The floor is the time of three quarters of an iteration, and of a quarter of the first. Four nodes on two
cores flatter the recovery, as a dead one leaves its core to the others; what it kept has to be read again all the same.

    python benchmarks/rdd_training.py --repeats 5 --json rdd.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import rdd_jobs
from nodes import end_on_terminate
from step_log import Kill, Step, StepLog, read_steps
from training_engines import HeadwaterEngine, Killer, Order, python_path, versions, warm_up

import headwater as hw
from headwater.ops.training.model_table import decode_model

#: of k-means: the iteration in which a node dies
KILLED_IN = 6
#: steps of a regression that aren't counted as later ones
WARM_STEPS = 2

Figures = dict[str, list[float]]


class Benchmark:
    """Runs the experiments in turns.

    Args:
        options: of the command line.
        folder: of the rows.
        work: for logs.
    """

    def __init__(self, options: argparse.Namespace, folder: Path, work: Path):
        self.options, self.folder, self.work = options, folder, work
        self.figures: Figures = defaultdict(list)
        self._runs = 0

    def figure_9(self, session: hw.Session) -> None:
        """Iterations from text, from Parquet, and with shares of the rows in the cache, once."""
        warm_up(session, 8 * self.options.workers)
        sources = {"text": rdd_jobs.read_text(self.folder), "Parquet": rdd_jobs.read_binary(self.folder)}
        weights = np.zeros(len(rdd_jobs.FEATURES) + 1)
        for name, rows in sources.items():
            taken, sums = [], {}
            for _ in range(self.options.jobs + 1):
                start = time.perf_counter()
                with session.run({"sums": rdd_jobs.gradient_job(rows, weights)}) as result:
                    sums = result.table("sums").to_pylist()[0]
                taken.append(time.perf_counter() - start)
            self._put(f"iteration from {name}", statistics.median(taken[1:]))
        means = [sums[name] / sums["rows"] for name in rdd_jobs.SUMS[1:]]
        nothing = rdd_jobs.gradient_job(hw.from_arrow(_row()), weights)
        for _ in range(2):
            start = time.perf_counter()
            nothing.compute(session)
        self._put("job of one row", time.perf_counter() - start)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            self._regression(session, share, means)

    def _regression(self, session: hw.Session, share: float, means: list[float]) -> None:
        log = self._log()
        model = rdd_jobs.regression(
            rdd_jobs.read_text(self.folder), share, self.options.evaluations, StepLog(log)
        )
        begun = time.time()
        with session.run({"model": model}, name="regression") as result:
            fitted = decode_model(result.table("model"))
        first = fitted.history.to_pylist()[0]
        close = np.allclose(
            [first["loss"], first["gradient"]], [means[0], np.abs(means[1:]).max()], rtol=1e-4
        )
        if not close:
            raise SystemExit(f"with a cache of {share:.0%}, loss and gradient are {first}, and not {means}")
        steps = read_steps(log)
        self._put(f"iteration, {share:.0%} in the cache", later(steps))
        if share == 1.0:
            self._put("regression, first iteration", steps[0].time - begun)
            self.figures["regression, steps"].append(len(steps))

    def figure_11(self, engine: HeadwaterEngine) -> None:
        """K-means, clean and with a node killed, once."""
        clean, begun, _ = self._clustering(engine, ())
        killed, _, kills = self._clustering(engine, (Order(KILLED_IN, "member"),))
        whole = [b.time - a.time for a, b in zip(clean, clean[1:])]
        middle = statistics.median(whole[1:])
        self._put("k-means, first iteration", clean[1].time - begun)
        self._put("k-means, an iteration", middle)
        self.figures["k-means, iterations"] = whole
        broken = iterations(killed)
        for iteration in range(KILLED_IN - 1, min(KILLED_IN + 3, len(broken)) + 1):
            self._put(f"k-means, iteration {iteration} with a kill", broken[iteration - 1])
        if not kills:
            raise SystemExit("k-means ended before its node was killed")

    def _clustering(
        self, engine: HeadwaterEngine, orders: tuple[Order, ...]
    ) -> tuple[list[Step], float, list[Kill]]:
        engine.ready()
        log = self._log()
        model = rdd_jobs.clustering(
            rdd_jobs.read_text(self.folder), self.options.clusters, self.options.iterations, StepLog(log)
        )

        def kill(_: Any, last: Step) -> None:
            others = [i for i, node in enumerate(engine.nodes.nodes) if node.process.pid != last.pid]
            engine.nodes.kill(others[0], replace=self.options.replace)

        begun = time.time()
        with (
            Killer(log, orders, lambda: True, kill) as killer,
            engine.session.run({"model": model}, name="k-means") as result,
        ):
            digest = result.digest("model")
        known = self.figures.setdefault("digests", [])
        known.append(digest)  # type: ignore[arg-type]
        if digest != known[0]:
            raise SystemExit(f"k-means gave other centers than before, after {len(killer.kills)} kills")
        return read_steps(log), begun, killer.kills

    def _log(self) -> Path:
        self._runs += 1
        path = self.work / f"rdd-{self._runs}.txt"
        path.unlink(missing_ok=True)
        return path

    def _put(self, name: str, seconds: float) -> None:
        self.figures[name].append(seconds)
        print(f"  {name}: {seconds:.3f} s", flush=True)


def _row() -> dict[str, Any]:
    return {name: np.zeros(1, np.float32) for name in rdd_jobs.TYPES}


def later(steps: list[Step]) -> float:
    """Return the median seconds of the later steps."""
    spans = [b.time - a.time for a, b in zip(steps, steps[1:])]
    return statistics.median(spans[min(WARM_STEPS - 1, len(spans) - 1) :])


def iterations(steps: list[Step]) -> list[float]:
    """Return the seconds of each iteration: from the first end of the one before to its own first end.

    Step 1 takes means, so iteration n is step n + 1. One that is told twice has ended the first time.
    """
    ends: dict[int, float] = {}
    for step in steps:
        ends.setdefault(step.step, step.time)
    return [ends[step] - ends[step - 1] for step in sorted(ends) if step - 1 in ends]


def ratios(figures: Figures, name: str, other: str) -> list[float]:
    """Return the ratios of two cases, turn by turn."""
    return [a / b for a, b in zip(figures[name], figures[other])]


def rows_of(figures: Figures) -> list[list[str]]:
    """Rows of the table."""
    cached = "iteration, 100% in the cache"
    rows: list[list[str]] = []

    def seconds(figure: str, what: str, name: str) -> None:
        rows.append([figure, what, _seconds(figures[name]), ""])

    def ratio(figure: str, what: str, values: list[float], goal: str) -> None:
        rows.append([figure, what, markdown.spread(values), goal])

    if figures[cached]:
        seconds("9", "s an iteration, text parsed each time", "iteration from text")
        seconds("9", "s an iteration, Parquet decoded each time, a job each", "iteration from Parquet")
        seconds("9", "s of a job of one row", "job of one row")
        seconds("9", "s an iteration, binary blocks decoded each time", "iteration, 0% in the cache")
        seconds("9", "s an iteration, from cache", cached)
        ratio("9", "text / cache", ratios(figures, "iteration from text", cached), ">= 4.5")
        ratio("9", "binary / cache", ratios(figures, "iteration, 0% in the cache", cached), ">= 2.3")
        first = ratios(figures, "regression, first iteration", cached)
        ratio("7", "logistic regression, first / later", first, ">= 10")
    if figures["k-means, an iteration"]:
        first = ratios(figures, "k-means, first iteration", "k-means, an iteration")
        ratio("7", "k-means, first / later", first, ">= 2.5")
        seconds("11", "s an iteration of k-means", "k-means, an iteration")
        floors = [0.75 + 0.25 * value for value in first]
        for iteration in range(KILLED_IN - 1, KILLED_IN + 4):
            found = ratios(figures, f"k-means, iteration {iteration} with a kill", "k-means, an iteration")
            goal = "<= 1.05" if iteration == KILLED_IN + 1 else ""
            ratio("11", f"iteration {iteration} / clean, a node killed in iteration {KILLED_IN}", found, goal)
            if iteration == KILLED_IN:
                ratio("11", "its floor", floors, "")
                ratio("11", "iteration / floor", [a / b for a, b in zip(found, floors)], "<= 1.1")
    if figures[cached]:
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            seconds("12", f"s an iteration, {share:.0%} in the cache", f"iteration, {share:.0%} in the cache")
        ratio(
            "12",
            "nothing / all in the cache",
            ratios(figures, "iteration, 0% in the cache", cached),
            "<= 6.0",
        )
        rows.append(["12", "less time with more in the cache", _monotone(figures), "yes"])
    return rows


def _monotone(figures: Figures) -> str:
    medians = [statistics.median(figures[f"iteration, {s}% in the cache"]) for s in (0, 25, 50, 75, 100)]
    return "yes" if all(a >= b for a, b in zip(medians, medians[1:])) else "no"


def _seconds(values: list[float]) -> str:
    spread = "" if len(values) < 2 else f" ({min(values):.3f} to {max(values):.3f})"
    return f"{statistics.median(values):.3f}{spread}"


def main() -> None:
    """Generate, measure, print a table, write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=256, help="of text")
    parser.add_argument("--workers", type=int, default=2, help="of the regression")
    parser.add_argument("--nodes", type=int, default=4, help="of k-means")
    parser.add_argument("--jobs", type=int, default=3, help="iterations from text and from Parquet in a turn")
    parser.add_argument("--evaluations", type=int, default=12, help="of the regression, about")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=10, help="of k-means")
    parser.add_argument("--replace", action="store_true", help="start a node in the place of the killed one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one turn of 32 MB")
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.mb, options.jobs = 1, min(options.mb, 32), 1
    end_on_terminate()
    base = options.data.resolve()
    rows, size = rdd_jobs.generate(base / f"rdd-{options.mb}", options.mb)
    work = base / "rdd"
    work.mkdir(parents=True, exist_ok=True)
    quiet: dict[str, Any] = {"progress": False, "journal": str(work / "journals")}
    os.environ["PYTHONPATH"] = python_path()  # so that workers find the functions of the benchmarks
    benchmark, before = Benchmark(options, base / f"rdd-{options.mb}", work), markdown.load()
    for turn in range(options.repeats):  # one cluster at a time: idle workers have heartbeats
        print(f"  turn {turn + 1} of {options.repeats}", flush=True)
        with hw.Session(workers=options.workers, threads_per_worker=1, **quiet) as session:
            benchmark.figure_9(session)
        with HeadwaterEngine(work / "four", options.nodes) as engine:
            benchmark.figure_11(engine)
    print(
        f"\n{rows:,} rows of {len(rdd_jobs.FEATURES)} features, {size / 1e6:.0f} MB of text; regression on "
        f"{options.workers} workers, k-means of {options.clusters} clusters on {options.nodes} nodes, of one thread "
        f"each; {options.repeats} turns, {before} at the start, {markdown.load()} at the end, {versions()}; medians "
        "(least to most); figures of the RDD paper\n"
    )
    print(markdown.table(["figure", "what", "measured", "goal"], rows_of(benchmark.figures)))
    if options.json:
        told = {"options": {k: str(v) for k, v in vars(options).items()}, "load": markdown.load()}
        options.json.write_text(
            json.dumps({**told, "versions": versions(), "figures": benchmark.figures}, indent=2)
        )


if __name__ == "__main__":
    main()
