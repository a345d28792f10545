"""From Parquet to a trained model on a GPU and on the cores: seconds, what crosses, how busy the GPU is, and a kill.

Orders are filtered, joined to customers, given features, aggregated and trained on. The GPU is "busy" where NVIDIA's
management library says that a kernel ran, looked at every 20 ms. With ``--kill`` the pipeline runs once more on two
workers that share the device, of which one is killed half-way: the digest must be that of the clean run.

    python benchmarks/gpu_pipeline.py --rows 20000000 --kill
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sections import Sections

import headwater as hw
from headwater import Dataset, col

FEATURES = ["price", "share", "age", "visits"]


def prepare(folder: Path, rows: int) -> None:
    """Write orders and customers, in numbers alone."""
    rng = np.random.default_rng(0)
    customers = max(1, rows // 20)
    pq.write_table(
        pa.table(
            {
                "customer": np.arange(customers),
                "age": rng.integers(18, 90, customers).astype(np.float32),
                "visits": rng.poisson(7, customers).astype(np.float32),
            }
        ),
        folder / "customers.parquet",
    )
    (folder / "orders").mkdir()
    files = 16
    for number in range(files):
        count = rows // files
        price = rng.lognormal(3, 1, count)
        pq.write_table(
            pa.table(
                {
                    "order": np.arange(count) + number * count,
                    "customer": rng.integers(0, customers, count),
                    "price": pa.array(price, mask=rng.random(count) < 0.01),
                    "discount": rng.random(count) * 0.3,
                    "day": rng.integers(0, 2500, count).astype(np.int32),
                    "returned": (rng.random(count) < 1 / (1 + np.exp(2 - price / 30))).astype(np.int8),
                }
            ),
            folder / "orders" / f"{number}.parquet",
        )


def pipeline(folder: Path, iterations: int) -> dict[str, Any]:
    """The outputs: revenue a month, and a model of what is returned."""
    orders: Dataset = hw.read_parquet(str(folder / "orders" / "*.parquet"))
    customers = hw.read_parquet(str(folder / "customers.parquet"))
    kept = orders.filter((col("price") > 1) & (col("day") >= 100))
    priced = kept.with_columns(
        revenue=col("price") * (1 - col("discount")),
        month=col("day") // 30,
        share=(col("discount") / 0.3).cast("float32"),
    )
    revenue = priced.group_by("month").agg(revenue=hw.sum("revenue"), orders=hw.count())
    joined = priced.join(customers, on="customer")
    known = joined.select(*FEATURES, "returned")
    rows = hw.prep.Standardize(*FEATURES).fit(known).transform(known)
    model = hw.train(
        rows,
        target="returned",
        features=FEATURES,
        objective=hw.objectives.LogisticRegression(l2=1e-4),
        optimizer=hw.optim.adam(0.05),
        batch_size=1 << 16,
        steps=iterations,
        dtype="float32",
    )
    return {"revenue": revenue.sort("month"), "model": model}


class Busy:
    """The share of looks at which the GPU ran a kernel."""

    def __init__(self) -> None:
        self.looks: list[bool] = []
        self._stop = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look as long as the block runs; without the library nothing is seen."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        with suppress(OSError, AttributeError):  # no library, or no device
            library, device, rates = (
                ctypes.CDLL("libnvidia-ml.so.1"),
                ctypes.c_void_p(),
                (ctypes.c_uint * 2)(),
            )
            if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
                return
            while not self._stop.wait(0.02):
                if library.nvmlDeviceGetUtilizationRates(device, rates) == 0:
                    self.looks.append(rates[0] > 0)

    @property
    def text(self) -> str:
        return f"{100 * statistics.mean(self.looks):.0f}%" if self.looks else "-"


def run(
    folder: Path, iterations: int, device: str, workers: int, kill: Callable[[Any], None] | None = None
) -> dict[str, Any]:
    """Run the pipeline on a session of its own."""
    busy = Busy()
    with hw.Session(workers=workers, device=device, progress=kill or False, journal=False) as session:  # type: ignore[arg-type]
        session.start()
        outputs = pipeline(folder, iterations)
        start = time.perf_counter()
        with busy.watched(), session.run(outputs) as result:
            seconds = time.perf_counter() - start
            stages = result.report.stages
            return {
                "seconds": seconds,
                "to": sum(stage.to_device_bytes for stage in stages),
                "back": sum(stage.to_host_bytes for stage in stages),
                "busy": busy.text,
                "digests": [result.digest(name) for name in sorted(outputs)],
                "lost": result.report.recovery.workers_lost,
            }


def killer() -> Callable[[Any], None]:
    """Make an observer that kills a worker process of this machine once half of the partitions are done."""
    struck: list[int] = []

    def observe(snapshot: Any) -> None:
        done = sum(stage.done for stage in snapshot.stages)
        if not struck and done >= sum(stage.total for stage in snapshot.stages) // 2:
            import psutil

            children = psutil.Process().children(recursive=True)
            workers = [child for child in children if child.num_threads() > 4]
            struck.append(max(workers, key=lambda child: child.cpu_times().user).pid)
            os.kill(struck[0], signal.SIGKILL)

    return observe


def killed(folder: Path, iterations: int) -> dict[str, list[dict[str, Any]]]:
    """Run on two workers that share the device, once as it is, and once with one that is killed half-way."""
    clean = run(folder, iterations, "gpu", 2)
    struck = run(folder, iterations, "gpu", 2, killer())
    print(
        f"killed: {struck['lost']} worker lost, same bytes: {struck['digests'] == clean['digests']}",
        flush=True,
    )
    return {"GPU, two workers that share it": [clean], "the same, one killed half-way": [struck]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cores", type=int, default=8)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--seconds", type=float, help="after which nothing more is begun")
    options = parser.parse_args()
    sections = Sections(options.seconds)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.rows)
        cases: dict[str, tuple[str, int]] = {
            "GPU, one worker": ("gpu", 1),
            "auto, one worker": ("auto", 1),
            f"CPU, {options.cores} workers": ("cpu", options.cores),
        }
        for turn in range(options.turns):
            for case, (device, workers) in cases.items():

                def once(device: str = device, workers: int = workers) -> dict[str, Any]:
                    return run(folder, options.steps, device, workers)

                figures = sections.run(f"{case}, turn {turn + 1}", once)
                if figures is not None:
                    found.setdefault(case, []).append(figures)
                    print(case, figures, flush=True)
            if options.kill and not turn:
                sections.run("killed", lambda: found.update(killed(folder, options.steps)))
    rows = [
        [
            case,
            statistics.median(turn["seconds"] for turn in turns),
            turns[-1]["to"] / 1e6,
            turns[-1]["back"] / 1e6,
            turns[-1]["busy"],
            "yes" if len({tuple(turn["digests"]) for turn in turns}) == 1 else "no",
        ]
        for case, turns in found.items()
    ]
    print(markdown.table(["", "s", "MB to the GPU", "MB back", "GPU busy", "same digests"], rows))
    return sections.status()


if __name__ == "__main__":
    sys.exit(main())
