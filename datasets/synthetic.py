"""RidesSource: deterministic taxi rides for demos and tests; any rows of it are the same on any machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..ops.expressions.expr import Expr
from ..ops.source import Source, Split
from .sizes import check_positive, cut_evenly, even_cuts, type_bytes

#: rows made from one random stream; partitions may cut anywhere
CHUNK_ROWS = 65_536
ZONES = 265
PARTITION_ROWS = 1 << 20

RIDES = pa.schema(
    [
        ("ride_id", pa.int64()),
        ("zone_id", pa.int64()),
        ("pickup", pa.timestamp("us")),
        ("distance", pa.float64()),
        ("fare", pa.float64()),
        ("tip", pa.float64()),
        ("passengers", pa.int8()),
        ("payment", pa.string()),
        ("tipped", pa.bool_()),
    ]
)

_BOROUGHS = ("Harbour", "Old Town", "Northside", "Southbank", "Airport", "Hills")
_PLACES = ("Market", "Park", "Station", "Bridge", "Square", "Gardens", "Mill", "Docks", "Heights", "Gate")
_KINDS = ("Upper", "Lower", "East", "West", "New", "Little")
_PAYMENTS = ("card", "cash", "voucher", "dispute")
_YEAR = 365 * 24 * 3600
_EPOCH = np.datetime64("2024-01-01", "us").astype(np.int64)


class RidesSource(Source):
    """Synthetic taxi rides. Made by `rides_source`."""

    kind = "rides"

    def __init__(self, rows: int, seed: int, partitions: int | None):
        self.rows = rows
        self.seed = seed
        self.partitions = partitions

    @property
    def schema(self) -> pa.Schema:
        return RIDES

    def identity(self) -> Any:
        return (self.kind, self.rows, self.seed, self.partitions)

    def splits(self) -> Sequence[Split]:
        cuts = (
            even_cuts(self.rows, self.partitions)
            if self.partitions
            else cut_evenly(self.rows, PARTITION_ROWS)
        )
        width = sum(type_bytes(field.type) for field in RIDES)
        return [
            Split(i, stop - start, int((stop - start) * width), detail=(start, stop))
            for i, (start, stop) in enumerate(cuts)
        ]

    def read(
        self, split: Split, columns: Sequence[str], predicate: Expr | None = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        start, stop = split.detail
        stop = stop if limit is None else min(stop, start + limit)
        for chunk in range(start // CHUNK_ROWS, -(-stop // CHUNK_ROWS)):
            base = chunk * CHUNK_ROWS
            first, last = max(start, base), min(stop, base + CHUNK_ROWS)
            if first < last:
                yield rides_chunk(self.seed, chunk).slice(first - base, last - first).select(list(columns))

    def column_bytes(self, columns: Sequence[str]) -> float:
        widths = {field.name: type_bytes(field.type) for field in RIDES}
        return sum(widths[name] for name in set(columns)) / sum(widths.values())

    def describe(self) -> str:
        return f"rides ({self.rows} rows, seed {self.seed})"


def rides_source(rows: int = 1_000_000, *, seed: int = 0, partitions: int | None = None) -> RidesSource:
    """Make a source of synthetic taxi rides in 2024.

    Columns: ride_id (int64, 0 to rows - 1), zone_id (int64, 1 to 265, Zipf-distributed), pickup
    (timestamp[us]), distance (float64, km), fare (float64; 1% null, 0.5% negative: refunds), tip
    (float64), passengers (int8; 1% null), payment (string), tipped (bool; learnable from the others).

    Args:
        rows: how many.
        seed: of the random numbers. The first rows of a longer source are those of a shorter one.
        partitions: how many; doesn't change the rows. None makes partitions of 1 Mi rows.

    Raises:
        ParameterError: rows or partitions below 1.

    Example:
        >>> source = rides_source(1000, partitions=2)
        >>> [split.rows for split in source.splits()]
        [500, 500]

    Source:
        J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011), for Philox, the
        counter-based generator that gives each chunk of rows its own stream.
    """
    check_positive("rides_source", rows=rows, partitions=partitions)
    return RidesSource(rows, seed, partitions)


def zones_table() -> pa.Table:
    """Make the table of zones that rides start in.

    Returns:
        265 rows: zone_id (int64, 1 to 265), borough (string), zone (string, distinct).

    Example:
        >>> zones_table().slice(0, 1).to_pylist()
        [{'zone_id': 1, 'borough': 'Harbour', 'zone': 'Upper Market 1'}]
    """
    ids = range(ZONES)
    return pa.table(
        {
            "zone_id": pa.array([i + 1 for i in ids], pa.int64()),
            "borough": [_BOROUGHS[i % len(_BOROUGHS)] for i in ids],
            "zone": [
                f"{_KINDS[i % len(_KINDS)]} {_PLACES[i // len(_KINDS) % len(_PLACES)]} "
                f"{i // (len(_KINDS) * len(_PLACES)) + 1}"
                for i in ids
            ],
        }
    )


def rides_chunk(seed: int, chunk: int) -> pa.Table:
    """Make one chunk of rides: rows ``chunk * CHUNK_ROWS`` and on.

    Only uniform draws are taken from the generator, so that the rows don't depend on how a NumPy
    version samples distributions.
    """
    random = np.random.Generator(np.random.Philox(key=[seed % (1 << 64), chunk]))
    uniform = random.random((10, CHUNK_ROWS))
    zone = _zones(uniform[0])
    second = np.floor(uniform[1] * _YEAR).astype(np.int64)
    hour = second // 3600 % 24
    distance = np.round(0.4 - 3.2 * np.log1p(-uniform[2]), 2)
    fare = np.round(3.0 + 2.1 * distance * (0.8 + 0.4 * uniform[3]) + 1.5 * (hour >= 20), 2)
    fare = np.where(uniform[4] < 0.005, -fare, fare)
    payment = np.searchsorted([0.68, 0.94, 0.99], uniform[5], side="right")
    passengers = 1 + np.searchsorted([0.7, 0.85, 0.92, 0.96, 0.98], uniform[6], side="right")
    logit = -0.9 + 0.12 * distance + 0.8 * (zone % len(_BOROUGHS) == 5) + 0.6 * (hour >= 18)
    tipped = (payment == 0) & (uniform[7] < 1 / (1 + np.exp(-logit)))
    tip = np.where(tipped, np.round(np.abs(fare) * (0.1 + 0.15 * uniform[8]), 2), 0.0)
    columns = [
        pa.array(np.arange(CHUNK_ROWS, dtype=np.int64) + chunk * CHUNK_ROWS),
        pa.array(zone),
        pa.array(_EPOCH + second * 1_000_000).cast(pa.timestamp("us")),
        pa.array(distance),
        pa.array(fare, mask=(uniform[9] >= 0.01) & (uniform[9] < 0.02)),
        pa.array(tip),
        pa.array(passengers.astype(np.int8), mask=uniform[9] < 0.01),
        pa.array(_PAYMENTS).take(pa.array(payment)),
        pa.array(tipped),
    ]
    return pa.Table.from_arrays(columns, schema=RIDES)


def _zones(uniform: np.ndarray) -> np.ndarray:
    """Zone ids by a Zipf law of exponent 1.1 over ranks; popular zones are spread over the ids."""
    weights = np.arange(1, ZONES + 1) ** -1.1
    bounds = np.cumsum(weights) / weights.sum()
    rank = np.minimum(np.searchsorted(bounds, uniform, side="right"), ZONES - 1)
    return (rank * 97 % ZONES + 1).astype(np.int64)
