"""How cost grows: four times the rows under one memory limit, two workers in place of one, exchange beside disk.

Three questions, each answered by interleaved runs:

- A shuffle of all columns of lineitem, once and four times, with the same memory limit: is the workers' peak of
  anonymous memory the same, and does the time grow with the rows? Once into memory-mapped blocks, once into Parquet.
  Beside it, how the time grows that one process takes to write as many bytes to files and to read them: when the
  system begins to write to the disk what it held in memory, that grows faster than the bytes. ``--scratch /dev/shm``
  leaves the disk out.
- An exchange of rows that lie in blocks already: how fast is it, and how fast does one process write as many bytes to
  files in the same folder, and read them back?
- TPC-H Q1 and the feature pipeline on one worker and on two.

    python benchmarks/scaling.py --scale 1 --turns 3 --data .bench
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datafiles
import markdown
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timing
from engines.headwater_engine import Headwater
from engines.protocol import Inputs

import headwater as hw
from headwater import col

KEY = "l_orderkey"
#: how many times the rows of the larger shuffle
MORE = 4
#: goals: of memory and time when there are ``MORE`` times the rows, and of the speed-up by a second worker
MEMORY_GOAL, TIME_GOAL, SPEED_UP_GOAL = 1.2, 1.1 * MORE, 1.7
#: bytes of a file, written and read at once
CHUNK = 64 << 20


def count_rows(table: pa.Table) -> pa.Table:
    """Count the rows of a batch; being a function, it makes all columns travel."""
    return pa.table({"rows": [table.num_rows]})


def copies(inputs: Inputs, count: int, folder: Path) -> str:
    """Name the file of lineitem ``count`` times; a pattern of the names."""
    folder.mkdir(parents=True)
    for i in range(count):
        os.link(inputs.table("lineitem"), folder / f"lineitem-{i}.parquet")
    return str(folder / "*.parquet")


def counted(rows: hw.Dataset, session: hw.Session) -> int:
    """Exchange by hash and read what arrives."""
    moved = rows.repartition(by=KEY).map_batches(count_rows, format="arrow")
    return moved.agg(rows=col("rows").sum()).compute(session)["rows"][0].as_py()


# -- more rows ---------------------------------------------------------------------------------------------------------


def growth(inputs: Inputs, turns: int, limit: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """Shuffle the rows once and ``MORE`` times, in turn, each in a session whose blocks are in ``scratch``."""
    patterns = {count: copies(inputs, count, folder / f"x{count}") for count in (1, MORE)}

    def exchange(count: int, session: hw.Session) -> int:
        return counted(hw.read_parquet(patterns[count]), session)

    def to_parquet(count: int, session: hw.Session) -> int:
        out = folder / "out"
        sink = hw.read_parquet(patterns[count]).repartition(by=KEY).write_parquet(str(out))
        with session.run({"out": sink}) as result:
            rows = result.report.outputs["out"].rows
        shutil.rmtree(out)
        return rows

    found: dict[str, Any] = {"bytes in files": file_growth(inputs, turns, scratch)}
    for name, job in {"exchange": exchange, "to Parquet": to_parquet}.items():
        figures: dict[int, list[dict[str, float]]] = {1: [], MORE: []}
        rows = {}
        for _ in range(turns):
            for count, taken in figures.items():
                scratch.mkdir()
                with hw.Session(
                    workers=2, memory_limit=limit, scratch=scratch, progress=False, journal=False
                ) as session:
                    counted(
                        hw.range(1000, partitions=4).select(**{KEY: col("id"), "rows": col("id")}), session
                    )
                    idle = max(session.peak_worker_memory().values())
                    rows[count], (seconds, cpu) = timing.timed(partial(job, count, session))
                    peak = max(session.peak_worker_memory().values())
                shutil.rmtree(scratch)
                taken.append({"seconds": seconds, "cpu": cpu, "peak": peak, "idle": idle})
        if rows[MORE] != MORE * rows[1]:
            raise AssertionError(f"{name}: {rows[MORE]} rows of {MORE} times {rows[1]}")
        found[name] = {count: median_of(taken) for count, taken in figures.items()}
    return found


def file_growth(inputs: Inputs, turns: int, scratch: Path) -> dict[int, dict[str, float]]:
    """Write and read files of as many bytes as lineitem has in memory, and ``MORE`` times as many."""
    size = sum(batch.nbytes for batch in pq.ParquetFile(inputs.table("lineitem")).iter_batches())
    figures: dict[int, list[dict[str, float]]] = {1: [], MORE: []}
    for _ in range(turns):
        for count, taken in figures.items():
            scratch.mkdir()
            _, (seconds, cpu) = timing.timed(partial(write_and_read, count * size, scratch))
            shutil.rmtree(scratch)
            taken.append({"seconds": seconds, "cpu": cpu})
    return {count: median_of(taken) for count, taken in figures.items()}


def median_of(figures: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(one[name] for one in figures) for name in figures[0]}


# -- the exchange beside the disk --------------------------------------------------------------------------------------


def exchange_speed(inputs: Inputs, turns: int, folder: Path) -> dict[str, float]:
    """Exchange persisted rows, and write and read a file of as many bytes, in turn."""
    taken: dict[str, list[tuple[float, float]]] = {"exchange": [], "file": []}
    with hw.Session(workers=2, progress=False, journal=False) as session:
        items = hw.read_parquet(inputs.table("lineitem")).persist()
        moved = items.repartition(by=KEY).map_batches(count_rows, format="arrow")
        jobs = {"rows": moved.agg(rows=col("rows").sum())}
        session.run(jobs).close()
        for _ in range(turns):
            with session.run(jobs) as result:
                size = max(stage.bytes_in for stage in result.report.stages)
            _, once = timing.timed(lambda: session.run(jobs).close())
            taken["exchange"].append(once)
            _, once = timing.timed(partial(write_and_read, size, folder))
            taken["file"].append(once)
        items.unpersist(session)
    seconds = timing.medians(taken)
    return {
        "bytes": size,
        **{f"{name} seconds": s for name, (s, _) in seconds.items()},
        **{f"{name} cpu": c for name, (_, c) in seconds.items()},
    }


def write_and_read(size: int, folder: Path) -> int:
    """Write files of zeros and ones by chunks, then read them; bytes read."""
    chunk = np.random.default_rng(0).integers(0, 2, CHUNK, dtype=np.uint8)
    paths = [folder / f"{start}.bytes" for start in range(0, size, CHUNK)]
    for path in paths:
        path.write_bytes(chunk)
    read = 0
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            read += file.readinto(chunk)
    for path in paths:
        path.unlink()
    return read


# -- more workers ------------------------------------------------------------------------------------------------------


def speed_up(inputs: Inputs, turns: int, folder: Path) -> dict[str, dict[int, tuple[float, float]]]:
    """Two workloads on one worker and on two, in turn; medians of seconds and CPU seconds."""
    engines = {workers: Headwater(workers, folder / f"w{workers}") for workers in (1, 2)}
    found = {}
    try:
        for name in ("tpch_q1", "features"):
            taken: dict[Any, list[tuple[float, float]]] = {1: [], 2: []}
            for turn in range(turns + 1):
                for workers, engine in engines.items():
                    out = folder / "out"
                    out.mkdir()
                    _, once = timing.timed(partial(engine.workloads[name], inputs, out))
                    shutil.rmtree(out)
                    if turn:
                        taken[workers].append(once)
            found[name] = timing.medians(taken)
    finally:
        for engine in engines.values():
            engine.close()
    return found


# -- telling -----------------------------------------------------------------------------------------------------------


def tell(found: dict[str, Any]) -> str:
    """Tables of what was measured."""
    rows = []
    for name, by_count in found["growth"].items():
        one, more = by_count[1], by_count[MORE]
        if "peak" not in one:
            rows += [
                [f"{name}, {what}", one[key], more[key], more[key] / one[key], "-"]
                for key, what in (("seconds", "seconds"), ("cpu", "CPU seconds"))
            ]
            continue
        rows += [
            [
                f"{name}, seconds",
                one["seconds"],
                more["seconds"],
                more["seconds"] / one["seconds"],
                f"≤ {TIME_GOAL:.1f}",
            ],
            [f"{name}, CPU seconds", one["cpu"], more["cpu"], more["cpu"] / one["cpu"], f"≤ {TIME_GOAL:.1f}"],
            [
                f"{name}, peak MB of a worker",
                one["peak"] / 1e6,
                more["peak"] / 1e6,
                more["peak"] / one["peak"],
                f"≤ {MEMORY_GOAL}",
            ],
            [
                f"{name}, of it when idle",
                one["idle"] / 1e6,
                more["idle"] / 1e6,
                more["idle"] / one["idle"],
                "-",
            ],
        ]
    texts = [markdown.table(["what", "1x", f"{MORE}x", "ratio", "goal"], rows)]
    speed = found["exchange"]
    rows = [
        [
            name,
            speed[f"{name} seconds"],
            speed[f"{name} cpu"],
            speed["bytes"] / 1e6 / speed[f"{name} seconds"],
        ]
        for name in ("exchange", "file")
    ]
    texts.append(markdown.table([f"{speed['bytes'] / 1e6:,.0f} MB", "s", "CPU s", "MB/s"], rows))
    rows = [
        [name, *by[1], *by[2], by[1][0] / by[2][0], f"≥ {SPEED_UP_GOAL}"]
        for name, by in found["workers"].items()
    ]
    head = ["", "1 worker, s", "CPU s", "2 workers, s", "CPU s", "speed-up", "goal"]
    texts.append(markdown.table(head, rows))
    return "\n\n".join(texts)


def main() -> None:
    """Generate, measure, print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory", default="768 MB", help="limit of a worker in the shuffles")
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--scratch", type=Path, help="where blocks lie while more rows are shuffled")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    inputs = datafiles.prepare(options.data.resolve(), options.scale)
    before = markdown.load()
    with tempfile.TemporaryDirectory(dir=options.data.resolve(), prefix="scaling-") as name:
        folder = Path(name)
        found: dict[str, Any] = {
            "growth": growth(
                inputs, options.turns, options.memory, folder, (options.scratch or folder) / "scratch"
            ),
            "exchange": exchange_speed(inputs, options.turns, folder),
            "workers": speed_up(inputs, options.turns, folder),
        }
    print(
        f"Scale {options.scale:g}, medians of {options.turns} interleaved turns, workers of {options.memory}, "
        f"{before} at the start, {markdown.load()} at the end\n\n{tell(found)}"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
