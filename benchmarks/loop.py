"""A driver's loop: k-means of 1,000 iterations over a persisted dataset, with a node killed at iteration 900.

Each iteration is a pipeline of its own: centroids as literals, an assignment, a mean by cluster. Told are seconds
an iteration, memory of the driver and of Dask's scheduler as the loop goes on, what the lost node costs, and
whether the centroids are NumPy's. The centroids begin anew every 50 iterations, so that no two pipelines are equal.

    python benchmarks/loop.py --iterations 1000
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from functools import reduce
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import psutil
from nodes import Nodes, end_on_terminate, surviving_workers_exist

import headwater as hw
from headwater import col

#: the node that is killed
VICTIM = 1


def make_points(rows: int, partitions: int, work: int) -> hw.Dataset:
    """Random points in the unit square, each drawn by its number.

    Args:
        rows: how many.
        partitions: how many.
        work: how many draws a coordinate is the mean of; more make points dearer to compute again.
    """

    def coordinate(seed: int) -> Any:
        draws = [hw.hash_unit("id", seed=seed * 1000 + draw) for draw in range(work)]
        return reduce(lambda a, b: a + b, draws) / work

    return hw.range(rows, partitions=partitions).select(x=coordinate(1), y=coordinate(2))


def start_of(restart: int, clusters: int) -> np.ndarray:
    """The centroids that a restart begins with, shape (clusters, 2)."""
    return np.random.default_rng([11, restart]).uniform(0.35, 0.65, (clusters, 2))


def step(points: hw.Dataset, centroids: np.ndarray) -> hw.Dataset:
    """One iteration: the mean of the points nearest to each centroid; a tie goes to the first."""
    distances = [(col("x") - float(x)) ** 2 + (col("y") - float(y)) ** 2 for x, y in centroids]
    names = [f"d{i}" for i in range(len(centroids))]
    measured = points.with_columns(**dict(zip(names, distances)))
    nearest = hw.least(*map(col, names))
    chain = hw.when(col(names[0]) == nearest).then(0)
    for index, name in enumerate(names[1:], start=1):
        chain = chain.when(col(name) == nearest).then(index)
    assigned = measured.select("x", "y", cluster=chain.otherwise(-1))
    return assigned.group_by("cluster").agg(x=hw.mean("x"), y=hw.mean("y"))


def moved(centroids: np.ndarray, means: Any) -> np.ndarray:
    """The new centroids; one that has no points stays."""
    new = centroids.copy()
    for cluster, x, y in zip(*(means.column(name).to_pylist() for name in ("cluster", "x", "y"))):
        new[cluster] = x, y
    return new


def numpy_step(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The same iteration in NumPy."""
    nearest = ((points[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2).argmin(axis=1)
    new = centroids.copy()
    for cluster in np.unique(nearest):
        new[cluster] = points[nearest == cluster].mean(axis=0)
    return new


def memory(pid: int) -> float:
    """Resident memory of a process in MB."""
    return psutil.Process(pid).memory_info().rss / 1e6


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the loop; seconds and memory at each iteration, and the centroids beside NumPy's."""
    folder = options.data.resolve() / "loop"
    found: dict[str, Any] = {"seconds": [], "cpu": [], "driver": [], "scheduler": [], "load": markdown.load()}
    with (
        Nodes(folder, options.nodes, surviving_workers_exist()) as nodes,
        hw.Session(nodes.address, progress=False, journal=str(folder / "journals")) as session,
    ):
        warm_up(session, options.nodes)
        points = make_points(options.rows, options.partitions, options.work)
        found["persisted"] = hasattr(type(points), "persist")
        persist = getattr(points, "persist", None) if found["persisted"] else None
        start = time.perf_counter()
        points = persist() if persist is not None else points
        points.agg(rows=hw.count()).compute(
            session
        )  # what is persisted is made by the first run that needs it
        found["persist seconds"] = time.perf_counter() - start
        centroids = np.zeros((options.clusters, 2))
        for iteration in range(options.iterations):
            if iteration % options.restart == 0:
                centroids = start_of(iteration // options.restart, options.clusters)
            if iteration == options.kill_at:
                half = statistics.median(found["seconds"]) / 2
                threading.Timer(half, nodes.kill, [VICTIM]).start()
            start, used = time.perf_counter(), time.process_time()
            with session.run({"result": step(points, centroids)}, name="k-means") as result:
                means = result.table("result")
                recovery = result.report.to_dict()["recovery"]
            found["seconds"].append(time.perf_counter() - start)
            found["cpu"].append(time.process_time() - used)
            found["driver"].append(memory(psutil.Process().pid))
            found["scheduler"].append(memory(nodes.scheduler.pid))
            centroids = moved(centroids, means)
            if options.kill_at <= iteration <= options.kill_at + 2:
                found[f"recovery at {iteration}"] = recovery
            if iteration % max(1, options.iterations // 10) == 0:
                print(f"  iteration {iteration}: {found['seconds'][-1] * 1e3:.0f} ms", flush=True)
        table = make_points(options.rows, options.partitions, options.work).compute(session)
    rows = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    last = (options.iterations - 1) // options.restart
    expected = start_of(last, options.clusters)
    for _ in range(options.iterations - last * options.restart):
        expected = numpy_step(rows, expected)
    found["difference"] = float(np.abs(centroids - expected).max())
    return found


def warm_up(session: hw.Session, count: int) -> None:
    """Run small jobs until all workers are there."""
    deadline = time.monotonic() + 90
    while True:
        hw.range(1000, partitions=4 * count).agg(total=hw.sum("id")).compute(session)
        if len(session._executor.workers()) >= count:  # type: ignore[union-attr]
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"fewer than {count} nodes came up")


def slope(values: list[float]) -> float:
    """How much values grow in each step, by a line through the second half of them."""
    half = values[len(values) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0]) if len(half) > 1 else 0.0


def rows_of(found: dict[str, Any], options: argparse.Namespace) -> list[list[str]]:
    """Rows of the table."""
    seconds = found["seconds"]
    hundred = max(1, min(100, len(seconds) // 3))
    middle = statistics.median(seconds)
    first, last = statistics.median(seconds[:hundred]), statistics.median(seconds[-hundred:])
    rows = [
        [f"ms an iteration, first {hundred}", f"{first * 1e3:.0f}"],
        [f"ms an iteration, last {hundred}", f"{last * 1e3:.0f}"],
        ["last / first", f"{last / first:.2f}"],
        ["the driver's CPU time of them, last / first", f"{_growth(found['cpu'], hundred):.2f}"],
    ]
    for name in ("driver", "scheduler"):
        values = found[name]
        rows.append([f"{name}, MB at the first, middle and last iteration", _three(values)])
        rows.append([f"{name}, KB an iteration, second half", f"{slope(values) * 1e3:.1f}"])
    if 0 <= options.kill_at < len(seconds):
        after = seconds[options.kill_at : options.kill_at + 10]
        rows.append([f"node killed in iteration {options.kill_at}: ms of it", f"{after[0] * 1e3:.0f}"])
        rows.append(["that iteration / median", f"{after[0] / middle:.2f}"])
        extra = sum(max(0.0, s - middle) for s in after)
        rows.append(["ms above the median, ten iterations from it", f"{extra * 1e3:.0f}"])
        rows.append(["the tenth after it / median", f"{after[-1] / middle:.2f}"])
    rows.append(["largest difference of a centroid from NumPy's", f"{found['difference']:.1e}"])
    return rows


def _growth(values: list[float], count: int) -> float:
    return statistics.median(values[-count:]) / statistics.median(values[:count])


def _three(values: list[float]) -> str:
    return ", ".join(f"{values[at]:.0f}" for at in (0, len(values) // 2, -1))


def main() -> None:
    """Run the loop, print a table, write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--work", type=int, default=8, help="draws a coordinate takes: what persisting saves")
    parser.add_argument("--restart", type=int, default=50, help="iterations between new initial centroids")
    parser.add_argument("--kill-at", type=int, help="iteration; by default nine tenths of them; -1: none")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="100 iterations")
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    options.iterations = min(options.iterations, 100) if options.quick else options.iterations
    if options.kill_at is None:
        options.kill_at = options.iterations * 9 // 10
    end_on_terminate()
    found = measure(options)
    held = f"persisted in {found['persist seconds']:.2f} s" if found["persisted"] else "not persisted"
    print(
        f"\n{options.iterations} iterations over {options.rows:,} points, {held}, {options.clusters} clusters, "
        f"{options.nodes} nodes of one thread, {found['load']} at the start, {markdown.load()} at the end\n"
    )
    print(markdown.table(["what", "measured"], rows_of(found, options)))
    if options.json:
        told = {"options": {k: str(v) for k, v in vars(options).items()}}
        options.json.write_text(json.dumps({**told, **found}, indent=2, default=str))
    wrong = found["difference"] > 1e-9
    print("centroids: " + ("NumPy's" if not wrong else f"WRONG by {found['difference']:.1e}"))
    raise SystemExit(wrong)


if __name__ == "__main__":
    main()
