"""The benchmark: the same workloads on Headwater and on other engines, in turn, on the same files and cores.

    python benchmarks/compare.py --scale 1 --turns 3 --data .bench
    python benchmarks/compare.py --engines headwater,duckdb --workloads tpch_q1,sort --scale 0.1

Every engine runs in a process of its own, which is started anew for each workload, so that none holds what an
earlier one left, and is up before anything is measured. All engines take a turn to warm up, and then in turn the
measured ones: A B C A B C. Every answer of every turn is checked. What takes too long, fails, or answers wrongly
counts as failed, with the reason; the rest goes on. The exit status tells whether Headwater did everything. Read
ratios rather than seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datafiles
import pyarrow as pa
import results_tables
from answers import Answers
from engine_client import EngineClient, EngineError, OverLimitError
from engines.protocol import Inputs
from workloads import WORKLOADS

#: in the order of their turns, and of columns in tables
ENGINES = ("headwater", "dask", "spark", "ray", "duckdb", "polars", "daft")


class Comparison:
    """Engines that take turns.

    Args:
        clients: the engines, by name.
        inputs: the files.
        answers: what checks.
        folder: where engines write.
        turns: measured turns of each workload.
    """

    def __init__(
        self, clients: dict[str, EngineClient], inputs: Inputs, answers: Answers, folder: Path, turns: int
    ):
        self._clients = clients
        self._inputs = inputs
        self._answers = answers
        self._folder = folder
        self._turns = turns

    def workload(self, name: str) -> list[dict[str, Any]]:
        """Run one workload on all engines; a row of results for each."""
        turns: dict[str, list[dict[str, float]]] = {engine: [] for engine in self._clients}
        failed = self._open()
        over_limit = set()
        missing = {
            engine: client.missing.get(name, "not written")
            for engine, client in self._clients.items()
            if engine not in failed and name not in client.workloads
        }
        failed |= missing
        for turn in range(1 + self._turns):
            for engine, client in self._clients.items():
                if engine in failed:
                    continue
                try:
                    figures = self._turn(client, name)
                except EngineError as error:
                    failed[engine] = str(error)
                    if isinstance(error, OverLimitError):
                        over_limit.add(engine)
                    print(f"  {engine} {name}: {error}", file=sys.stderr, flush=True)
                    continue
                if turn:
                    turns[engine].append(figures)
        self.close()
        return [
            {
                "engine": engine,
                "workload": name,
                **medians(turns[engine] if engine not in failed else []),
                "ok": engine not in failed,
                "missing": engine in missing,
                "over_limit": engine in over_limit,
                "reason": failed.get(engine),
                "startup_seconds": client.startup_seconds,
                "versions": client.versions,
                "turns": turns[engine],
            }
            for engine, client in self._clients.items()
        ]

    def close(self) -> None:
        """End all engines; the next workload starts them anew."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda client: client.close(), self._clients.values()))

    def _open(self) -> dict[str, str]:
        """Start all engines at once; those that fail, with the reason."""

        def start(client: EngineClient) -> str | None:
            try:
                client.open()
            except EngineError as error:
                print(f"  {client.name} doesn't start: {error}", file=sys.stderr, flush=True)
                return f"doesn't start: {error}"
            return None

        with ThreadPoolExecutor() as pool:
            reasons = dict(zip(self._clients, pool.map(start, self._clients.values())))
        return {engine: reason for engine, reason in reasons.items() if reason is not None}

    def _turn(self, client: EngineClient, name: str) -> dict[str, float]:
        shutil.rmtree(self._folder, ignore_errors=True)
        output = self._folder / "output"
        output.mkdir(parents=True)
        os.sync()  # what was written before is not paid for by who comes next
        load = os.getloadavg()[0]
        answer = self._folder / "answer.arrow"
        seconds, usage = client.run(name, self._inputs, output, answer)
        try:
            table = pa.ipc.open_file(answer).read_all() if answer.exists() else None
        except pa.ArrowException as error:
            raise EngineError(f"its answer can't be read: {error}") from error
        if wrong := self._answers.check(name, table, output):
            raise EngineError(f"wrong answer: {wrong}")
        shutil.rmtree(self._folder)
        return {"seconds": seconds, **asdict(usage), "load": load}


def medians(turns: list[dict[str, float]]) -> dict[str, float | None]:
    """The median of seconds and CPU seconds, and the highest peak of memory."""
    if not turns:
        return {"seconds": None, "cpu_seconds": None, "peak_rss_mb": None}
    return {
        "seconds": statistics.median(turn["seconds"] for turn in turns),
        "cpu_seconds": statistics.median(turn["cpu_seconds"] for turn in turns),
        "peak_rss_mb": max(turn["peak_rss_mb"] for turn in turns),
    }


def main() -> None:
    """Generate, run, check; print tables; write results, and the documentation if asked to."""
    options = arguments()
    began = time.perf_counter()
    inputs = datafiles.prepare(options.data.resolve(), options.scale)
    scratch = options.data.resolve() / f"scratch-{os.getpid()}"
    clients = {
        name: EngineClient(
            name,
            sys.executable if name == "headwater" else options.peers,
            options.cores,
            scratch / name,
            options.limit,
        )
        for name in options.engines
    }
    answers = Answers(inputs, options.cores)
    comparison = Comparison(clients, inputs, answers, scratch / "turn", options.turns)
    rows: list[dict[str, Any]] = []
    try:
        for name in options.workloads:
            found = comparison.workload(name)
            rows += found
            print(results_tables.line(name, found), file=sys.stderr, flush=True)
            write(options.output, rows)
    finally:
        comparison.close()
        shutil.rmtree(scratch, ignore_errors=True)
    text = results_tables.markdown(rows, options.scale, options.turns, options.cores)
    print(text)
    print(f"{(time.perf_counter() - began) / 60:.0f} minutes", file=sys.stderr)
    if options.docs:
        results_tables.replace_section(options.docs, text, rows)
    ours = [row for row in rows if row["engine"] == "headwater"]
    raise SystemExit(any(not row["ok"] and not row["missing"] for row in ours))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write what there is so far."""
    path.write_text(json.dumps(rows, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default=",".join(ENGINES), help="of %(default)s")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="of %(default)s")
    parser.add_argument("--turns", type=int, default=3, help="measured turns, after one that warms up")
    parser.add_argument("--scale", type=float, default=1.0, help="TPC-H's, which multiplies other inputs too")
    parser.add_argument("--cores", type=int, default=2, help="processors for each engine")
    parser.add_argument("--data", type=Path, default=Path(".bench"), help="where generated files lie")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds that a turn may take")
    parser.add_argument(
        "--peers", default=sys.executable, help="Python in which the other engines are installed"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--docs", type=Path, help="Markdown file whose section of results is replaced")
    options = parser.parse_args()
    options.engines = chosen(options.engines, ENGINES, "engine", parser)
    options.workloads = chosen(options.workloads, tuple(WORKLOADS), "workload", parser)
    return options


def chosen(text: str, known: tuple[str, ...], what: str, parser: argparse.ArgumentParser) -> list[str]:
    """Names that were asked for, in the usual order."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}.")
    return [name for name in known if name in names]


if __name__ == "__main__":
    main()
