"""The training that the benchmark runs, for each engine: digits by a multilayer perceptron of one hidden layer.

Its rows are MNIST's where they lie on the machine, repeated as often as needed, else random ones of that shape.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import headwater as hw
from headwater.ops.objectives.torch import Torch

PIXELS, HIDDEN, CLASSES = 784, 256, 10
FILES = 8
MNIST = Path(
    os.environ.get("HEADWATER_MNIST", Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist10k")
)


@dataclass(frozen=True)
class Job:
    """What is trained, the same for all engines.

    Attributes:
        folder: of the rows.
        rows: how many.
        batch: rows of a global batch.
        optimizer: "sgd" (with momentum) or "adam".
    """

    folder: Path
    rows: int
    batch: int
    optimizer: str


def generate(folder: Path, rows: int) -> None:
    """Write the rows, once: as Parquet files for Headwater, and as NumPy files for PyTorch."""
    if (folder / "y.npy").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    x, y = _rows(rows)
    for file in range(FILES):
        part = slice(rows * file // FILES, rows * (file + 1) // FILES)
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(x[part].ravel()), PIXELS)
        table = pa.table({"pixels": pixels, "digit": pa.array(y[part])})
        pq.write_table(table, folder / f"part-{file}.parquet", compression="none", use_dictionary=False)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)


def _rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    if (MNIST / "images-idx3-ubyte.gz").exists():
        pixels = np.frombuffer(
            gzip.decompress((MNIST / "images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
        )
        digits = np.frombuffer(
            gzip.decompress((MNIST / "labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
        )
        which = np.arange(count) % len(digits)
        return pixels.reshape(-1, PIXELS)[which].astype(np.float32) / 255, digits[which].astype(np.int64)
    rng = np.random.default_rng(0)
    return rng.random((count, PIXELS), np.float32), rng.integers(0, CLASSES, count)


def build() -> Any:
    """Make the network."""
    from torch import nn

    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def torch_optimizer(name: str, parameters: Any) -> Any:
    """Make PyTorch's optimizer."""
    import torch

    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    return torch.optim.Adam(parameters, lr=1e-3)


class NotedTorch(Torch):
    """The network as an objective that puts down in which processes it is trained.

    Args:
        pids: a file that gets the number of each of them.
    """

    def __init__(self, pids: Path):
        super().__init__(build, output="classes", classes=CLASSES)
        self.pids = str(pids)

    def value_and_grad(self, params: Any, batch: Any, rng: Any) -> tuple[float, Any, dict[str, float]]:
        if self.pids not in _noted:
            _noted.add(self.pids)
            with open(self.pids, "a") as file:
                file.write(f"{os.getpid()}\n")
        return super().value_and_grad(params, batch, rng)


#: files that this process's number is in
_noted: set[str] = set()


def objective(numpy: bool = False, pids: Path | None = None) -> Any:
    """Headwater's objective of the network.

    Args:
        numpy: written in NumPy rather than PyTorch.
        pids: see `NotedTorch`.
    """
    if pids is not None:
        return NotedTorch(pids)
    if numpy:
        return hw.objectives.MLP((HIDDEN,), task="classes", classes=CLASSES)
    return hw.objectives.Torch(build, output="classes", classes=CLASSES)


def optimizer(name: str) -> Any:
    """Headwater's optimizer, with the settings of `torch_optimizer`."""
    return hw.optim.momentum(0.1, 0.9) if name == "sgd" else hw.optim.adam(1e-3)


def in_headwater(
    job: Job,
    steps: int,
    shards: int,
    callback: Callable[[dict[str, float]], Any],
    numpy: bool = False,
    pids: Path | None = None,
    workers: int | None = None,
) -> hw.Model:
    """The training as a Headwater model.

    Args:
        job: what.
        steps: how many.
        shards: into how many parts the rows are cut.
        callback: called after each step.
        numpy, pids: see `objective`.
        workers: that take part at most; None is all.
    """
    return hw.train(
        hw.read_parquet(str(job.folder / "*.parquet")),
        target="digit",
        objective=objective(numpy, pids),
        optimizer=optimizer(job.optimizer),
        steps=steps,
        batch_size=job.batch,
        strategy=hw.AllReduce(shards=shards, workers=workers),
        callbacks=[callback],
    )
