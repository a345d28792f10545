"""TPC-H Q1, Q3 and Q6: Headwater beside Dask DataFrame and DuckDB, two threads each, interleaved.

Every answer is checked against DuckDB's. Seconds move with whatever else the machine does; CPU seconds,
of all processes together, do so less, and ratios of one interleaved run are what to read.

    python benchmarks/tpch.py --scale 1 --repeats 3 --data .bench
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import psutil
import tpch_queries as queries

import headwater as hw


def generate(folder: Path, scale: float) -> None:
    """Generate the three tables the queries need, once."""
    if (folder / "lineitem.parquet").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tables = "--tables=lineitem,orders,customer"
    subprocess.run(
        [
            str(Path(sys.executable).with_name("tpchgen-cli")),
            "parquet",
            "-s",
            str(scale),
            tables,
            "--output-dir",
            str(folder),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def same_answer(got: pd.DataFrame, expected: pd.DataFrame) -> bool:
    """Whether two answers agree: exactly, but floats to nine digits, as both sum in floating point."""
    if list(got.columns) != list(expected.columns) or len(got) != len(expected):
        return False
    for name in expected.columns:
        a, b = got[name], expected[name]
        if pd.api.types.is_float_dtype(b):
            if not np.allclose(a.astype(float), b, rtol=1e-9):
                return False
        elif list(map(str, pd.to_datetime(a) if "date" in name else a)) != list(
            map(str, pd.to_datetime(b) if "date" in name else b)
        ):
            return False
    return True


def cpu_seconds() -> float:
    """CPU time that this process and the ones it started have used."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def timed(run: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Run a job: its answer, and the seconds and CPU seconds it took."""
    start, used = time.perf_counter(), cpu_seconds()
    answer = run()
    seconds = time.perf_counter() - start
    return answer, (seconds, cpu_seconds() - used)


def medians(by_system: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Median seconds and CPU seconds of each system."""
    return {
        name: tuple(statistics.median(column) for column in zip(*values))
        for name, values in by_system.items()
    }


def row(job: str, by_system: dict[str, list[tuple[float, float]]]) -> str:
    """One line: what each system took, and Headwater's ratio to the others, in seconds and in CPU seconds."""
    found = medians(by_system)
    cells = [f"{name} {seconds:.2f} s, {cpu:.2f} CPU s" for name, (seconds, cpu) in found.items()]
    if ours := found.get("headwater"):
        cells += [
            f"headwater/{name} {ours[0] / seconds:.2f}, CPU {ours[1] / max(cpu, 0.01):.2f}"
            for name, (seconds, cpu) in found.items()
            if name != "headwater"
        ]
    return f"  {job:8}" + "   ".join(cells)


def measure(folder: Path, repeats: int, systems: list[str]) -> dict[str, Any]:
    """Run all systems in turn, ``repeats`` times after one warm-up, and check every answer."""
    connection = duckdb.connect()
    connection.execute("SET threads = 2")
    runners: dict[str, dict[str, Callable[[], pd.DataFrame]]] = {
        "duckdb": {
            q: lambda sql=sql: connection.execute(sql.format(folder)).df() for q, sql in queries.SQL.items()
        }
    }
    closers: list[Callable[[], None]] = []
    if "headwater" in systems:
        session = hw.Session(workers=2, threads_per_worker=1, progress=False)
        closers.append(session.close)
        runners["headwater"] = {
            q: lambda f=f: f(folder).compute(session).to_pandas() for q, f in queries.HEADWATER.items()
        }
    if "dask" in systems:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        client = Client(cluster, set_as_default=True)
        closers += [client.close, cluster.close]
        runners["dask"] = {q: lambda f=f: f(folder) for q, f in queries.DASK.items()}
    times: dict[str, dict[str, list[tuple[float, float]]]] = {
        q: {name: [] for name in runners} for q in queries.SQL
    }
    wrong: list[str] = []
    for turn in range(repeats + 1):
        for q in queries.SQL:
            expected = runners["duckdb"][q]()
            for name, run in runners.items():
                answer, took = timed(run[q])
                if turn:
                    times[q][name].append(took)
                if not same_answer(answer, expected):
                    wrong.append(f"{name} {q}")
    for close in closers:
        close()
    return {"times": times, "wrong": sorted(set(wrong)), "load": os.getloadavg()[0]}


def main() -> None:
    """Generate, measure, print a table, write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--systems", default="headwater,dask")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = (options.data / f"tpch-{options.scale:g}").resolve()
    generate(folder, options.scale)
    result = measure(folder, options.repeats, options.systems.split(","))
    print(
        f"TPC-H scale {options.scale:g}, median of {options.repeats} after a warm-up, load {result['load']:.1f}"
    )
    for q, by_system in result["times"].items():
        print(row(q, by_system))
    print("answers: " + ("all equal DuckDB's" if not result["wrong"] else f"WRONG: {result['wrong']}"))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    raise SystemExit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
