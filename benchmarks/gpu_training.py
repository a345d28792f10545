"""K-means and logistic regression: an iteration on a GPU, on the machine's cores, and in hand-written CuPy and PyTorch.

Headwater trains the same pipeline with ``device="gpu"`` and ``device="cpu"``. The seconds of an iteration are those of
the whole gang's steps, what makes them recoverable included; hand-written code holds all rows on the device and does
nothing else. All take turns; ratios are to hand-written code in the same turn.

    python benchmarks/gpu_training.py --rows 20000000 --clusters 64
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import markdown
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sections import Sections

import headwater as hw

COLUMNS = 16
NAMES = [f"x{i}" for i in range(COLUMNS)]
RATE = 0.5


def prepare(folder: Path, rows: int, clusters: int) -> None:
    """Write points around centers, float32, with a label that a plane gives, in files of equal size."""
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 4, (clusters, COLUMNS)).astype(np.float32)
    plane = rng.normal(size=COLUMNS).astype(np.float32)
    files = 16
    for number in range(files):
        count = rows // files
        points = centers[rng.integers(0, clusters, count)] + rng.normal(size=(count, COLUMNS)).astype(
            np.float32
        )
        label = (points @ plane + rng.normal(size=count) > 0).astype(np.int8)
        columns = {name: points[:, i] for i, name in enumerate(NAMES)}
        pq.write_table(pa.table({**columns, "label": label}), folder / f"{number}.parquet")
    np.save(folder / "centers.npy", centers + rng.normal(size=centers.shape).astype(np.float32))


def matrix(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the points, shape (rows, columns), float32, and the labels, float32."""
    table = pq.read_table(sorted(folder.glob("*.parquet")))
    points = np.stack([table[name].to_numpy() for name in NAMES], axis=1)
    return points, table["label"].to_numpy().astype(np.float32)


def in_headwater(folder: Path, iterations: int, device: str, workers: int) -> dict[str, float]:
    """Seconds of an iteration of each job, on a session that is kept for both."""
    rows = hw.read_parquet(str(folder / "*.parquet"))
    count = rows_in(folder)
    centers = np.load(folder / "centers.npy")
    models = {
        "k-means": hw.train(
            rows.select(*NAMES),
            features=NAMES,
            objective=hw.objectives.KMeans(len(centers), centers, max_iterations=iterations, tolerance=0.0),
            dtype="float32",
        ),
        "logistic regression": hw.train(
            rows,
            target="label",
            features=NAMES,
            objective=hw.objectives.LogisticRegression(),
            optimizer=hw.optim.sgd(RATE),
            batch_size=count,
            epochs=iterations,
            dtype="float32",
        ),
    }
    seconds = {}
    with hw.Session(workers=workers, device=device, progress=False, journal=False) as session:  # type: ignore[arg-type]
        for name, model in models.items():
            with session.run({"model": model}) as result:
                log = next(stage.training for stage in result.report.stages if stage.training)
                seconds[name] = log["seconds"] / max(1, log["steps"])
    return seconds


def rows_in(folder: Path) -> int:
    """How many rows the files have."""
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


def in_cupy(folder: Path, iterations: int) -> dict[str, float]:
    """The same by hand."""
    import cupy

    points, label = (cupy.asarray(array) for array in matrix(folder))
    centers = cupy.asarray(np.load(folder / "centers.npy"))
    state = {"centers": centers, "weights": cupy.zeros(COLUMNS + 1, dtype=cupy.float32)}
    numbers = cupy.arange(len(centers))
    block = 1 << 20

    def lloyd() -> None:
        centers, total = state["centers"], 0
        for start in range(0, len(points), block):
            x = points[start : start + block]
            nearest = (cupy.square(centers).sum(axis=1) - 2 * (x @ centers.T)).argmin(axis=1)
            belongs = (nearest[:, None] == numbers).astype(cupy.float32)
            total = total + cupy.column_stack([belongs.T @ x, belongs.sum(axis=0)])
        state["centers"] = total[:, :-1] / total[:, -1:]

    def descent() -> None:
        weights = state["weights"]
        error = 1 / (1 + cupy.exp(-(points @ weights[:-1] + weights[-1]))) - label
        gradient = cupy.append(error @ points, error.sum())
        state["weights"] = weights - RATE * gradient / len(points)

    return {
        name: timed(step, iterations, cupy.cuda.Device().synchronize)
        for name, step in {"k-means": lloyd, "logistic regression": descent}.items()
    }


def in_torch(folder: Path, iterations: int) -> dict[str, float]:
    """The same by hand in PyTorch."""
    import torch

    points, label = (torch.from_numpy(array).cuda() for array in matrix(folder))
    state = {
        "centers": torch.from_numpy(np.load(folder / "centers.npy")).cuda(),
        "weights": torch.zeros(COLUMNS + 1, device="cuda"),
    }
    block = 1 << 20

    def lloyd() -> None:
        centers = state["centers"]
        total = torch.zeros((len(centers), COLUMNS + 1), device="cuda")
        for start in range(0, len(points), block):
            x = points[start : start + block]
            nearest = (centers.square().sum(1) - 2 * (x @ centers.T)).argmin(1)
            belongs = torch.nn.functional.one_hot(nearest, len(centers)).float()
            total += torch.column_stack([belongs.T @ x, belongs.sum(0)])
        state["centers"] = total[:, :-1] / total[:, -1:]

    def descent() -> None:
        weights = state["weights"]
        error = torch.sigmoid(points @ weights[:-1] + weights[-1]) - label
        gradient = torch.cat([error @ points, error.sum()[None]])
        state["weights"] = weights - RATE * gradient / len(points)

    return {
        name: timed(step, iterations, torch.cuda.synchronize)
        for name, step in {"k-means": lloyd, "logistic regression": descent}.items()
    }


def timed(step: Callable[[], None], iterations: int, wait: Callable[[], None]) -> float:
    """Seconds of a step, after one that is not counted."""
    step()
    wait()
    start = time.perf_counter()
    for _ in range(iterations):
        step()
    wait()
    return (time.perf_counter() - start) / iterations


def table(figures: dict[str, dict[str, list[float]]]) -> str:
    """A line for each job and engine: milliseconds of an iteration, and the ratio to hand-written CuPy."""
    lines = []
    for job, engines in figures.items():
        for engine, seconds in engines.items():
            ratios = [a / b for a, b in zip(seconds, engines.get("CuPy by hand", []))]
            ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
            lines.append([job, engine, f"{statistics.median(seconds) * 1e3:.2f}", ratio])
    return markdown.table(["job", "engine", "ms an iteration", "by CuPy by hand"], lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--clusters", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--cpu-turns", type=int, default=1, help="of Headwater on the cores, which takes longest"
    )
    parser.add_argument("--cores", type=int, default=8, help="worker processes of Headwater on the cores")
    parser.add_argument("--seconds", type=float, help="after which nothing more is begun")
    options = parser.parse_args()
    sections = Sections(options.seconds)
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.rows, options.clusters)
        for turn in range(options.turns):
            engines: dict[str, Callable[[], dict[str, float]]] = {
                "CuPy by hand": lambda: in_cupy(folder, options.iterations),
                "PyTorch by hand": lambda: in_torch(folder, options.iterations),
                "Headwater, GPU": lambda: in_headwater(folder, options.iterations, "gpu", 1),
            }
            if turn < options.cpu_turns:
                engines["Headwater, CPU"] = lambda: in_headwater(
                    folder, options.iterations, "cpu", options.cores
                )
            for engine, run in engines.items():
                for job, seconds in (sections.run(f"{engine}, turn {turn + 1}", run) or {}).items():
                    figures[job][engine].append(seconds)
                    print(f"{engine}, {job}: {seconds * 1e3:.2f} ms", flush=True)
    print(table(figures))
    return sections.status()


if __name__ == "__main__":
    sys.exit(main())
