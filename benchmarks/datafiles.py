"""The files that the benchmarks read: generated once, from fixed seeds, and the same on every machine.

Sizes are those at scale 1; another scale multiplies rows and bytes. A file gets its name when it is whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from engines.protocol import Inputs
from workloads import CLUSTERS, FEATURE_COLUMNS, LABEL, POINT_COLUMNS

TPCH_TABLES = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier")

TEXT_BYTES = 300_000_000
VOCABULARY, WORDS_A_LINE = 100_000, 12
ROWS, ROW_GROUP = 2_000_000, 100_000


def prepare(folder: Path, scale: float) -> Inputs:
    """Generate what isn't there yet of the inputs of all workloads.

    Args:
        folder: where the files of all scales lie.
        scale: TPC-H's scale factor, which multiplies the other inputs too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tag = f"{scale:g}"
    inputs = Inputs(
        tpch=folder / f"tpch-{tag}",
        tpch_plain=folder / f"tpch-{tag}-plain",
        text=folder / f"text-{tag}.txt",
        points=folder / f"points-{tag}.parquet",
        centers=folder / f"centers-{tag}.parquet",
        samples=folder / f"samples-{tag}.parquet",
    )
    tpch(inputs.tpch, scale)
    inputs.tpch_plain.mkdir(exist_ok=True)
    for name in TPCH_TABLES:
        source = Path(inputs.table(name))
        _once(Path(inputs.plain_table(name)), lambda path, source=source: write_plain(path, source))
    _once(inputs.text, lambda path: write_text(path, int(TEXT_BYTES * scale)))
    _once(inputs.points, lambda path: write_points(path, int(ROWS * scale)))
    _once(inputs.centers, lambda path: write_centers(path, inputs.points))
    _once(inputs.samples, lambda path: write_samples(path, int(ROWS * scale)))
    return inputs


def tpch(folder: Path, scale: float) -> None:
    """Generate the TPC-H tables that aren't there, by the tpchgen-cli that is installed beside this Python."""
    missing = [name for name in TPCH_TABLES if not (folder / f"{name}.parquet").exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = str(Path(sys.executable).with_name("tpchgen-cli"))
    subprocess.run(
        [
            generator,
            "parquet",
            "-s",
            str(scale),
            f"--tables={','.join(missing)}",
            "--output-dir",
            str(folder),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def write_plain(path: Path, source: Path) -> None:
    """Copy a Parquet file, and hide from readers which Arrow types its columns had: by another name of that entry."""
    content = bytearray(source.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    entry = content.rfind(b"ARROW:schema", footer)
    if entry >= 0:
        content[entry : entry + 5] = b"arrow"
    path.write_bytes(content)


def write_text(path: Path, size: int) -> None:
    """Write lines of words, of which the r-th most frequent occurs in proportion to 1 / r."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 11, 2 * VOCABULARY)
    letters = rng.integers(ord("a"), ord("z") + 1, (2 * VOCABULARY, 10)).astype(np.uint8)
    drawn = (bytes(row[:length]).decode() for row, length in zip(letters, lengths))
    words = np.array(list(dict.fromkeys(drawn))[:VOCABULARY], dtype=object)
    shares = np.cumsum(1.0 / np.arange(1, len(words) + 1))
    shares /= shares[-1]
    inside, ends = words + " ", words + "\n"
    written = 0
    with open(path, "w", encoding="ascii") as file:
        while written < size:
            picked = np.searchsorted(shares, rng.random((20_000, WORDS_A_LINE)), side="right")
            lines = inside[picked]
            lines[:, -1] = ends[picked[:, -1]]
            written += file.write("".join(lines.ravel()))


def write_points(path: Path, rows: int) -> None:
    """Write points around a dozen centers that overlap, so that k-means has something to do in each iteration."""
    rng = np.random.default_rng(2)
    middles = rng.normal(0.0, 2.0, (CLUSTERS + 4, len(POINT_COLUMNS)))

    def blocks() -> Iterator[pa.Table]:
        for block in _blocks(rows):
            points = middles[rng.integers(len(middles), size=block)]
            points += rng.normal(0.0, 1.5, points.shape)
            yield pa.table(dict(zip(POINT_COLUMNS, points.T.copy())))

    _write(path, blocks())


def write_centers(path: Path, points: Path) -> None:
    """Write the first points as the centers to begin with."""
    first = pq.ParquetFile(points).read_row_group(0).slice(0, CLUSTERS)
    pq.write_table(first, path)


def write_samples(path: Path, rows: int) -> None:
    """Write correlated features, and labels drawn from a logistic model of them."""
    rng = np.random.default_rng(3)
    width = len(FEATURE_COLUMNS)
    mixing = np.eye(width) + rng.normal(0.0, 0.2, (width, width))
    weights = rng.normal(0.0, 1.0, width)

    def blocks() -> Iterator[pa.Table]:
        for block in _blocks(rows):
            x = rng.normal(0.0, 1.0, (block, width)) @ mixing
            label = rng.random(block) < 1.0 / (1.0 + np.exp(-(x @ weights - 0.5)))
            yield pa.table({**dict(zip(FEATURE_COLUMNS, x.T.copy())), LABEL: label.astype(np.int64)})

    _write(path, blocks())


def _blocks(rows: int) -> Iterator[int]:
    for start in range(0, rows, ROW_GROUP):
        yield min(ROW_GROUP, rows - start)


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, use_dictionary=False) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _once(path: Path, write: Callable[[Path], None]) -> None:
    if not path.exists():
        whole = path.with_name(f".{path.name}.part")
        write(whole)
        os.replace(whole, path)
