"""Fingerprint of rows on a device, the same as the host's: tiles give their polynomials, which are put together.

All arithmetic is of integers modulo 2**64, where the order of additions doesn't matter.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np

from ....lineage.fingerprint import RATIOS, SECOND_LANE, Fingerprint
from ....lineage.hashing import mix, powers
from ...backend import to_host
from ..modules import kernel, on_device
from ..table import DeviceTable, to_arrow
from .row_hash import PackedColumns, hash_rows

#: rows that a block absorbs at once, and how often it does
_STEP, _STEPS = 1024, 8
#: rows of a tile
TILE = _STEP * _STEPS
_MODULUS = 1 << 64


def fingerprint_rows(table: DeviceTable, xp: ModuleType) -> Fingerprint:
    """Return the fingerprint of a table's rows, in order.

    Hashes never leave the registers. Traffic, in bytes a row: the columns' widths and one for each validity mask; for
    strings as `hash_rows`. Of each `TILE` rows 16 bytes come to the host, which puts them together.

    Args:
        table: the rows.
        xp: NumPy or CuPy.

    Returns:
        What `Fingerprint(schema).update` makes of the same rows; merges with others.

    Example:
        >>> import pyarrow as pa
        >>> from headwater.ops.device.table import to_device
        >>> rows = pa.table({"x": [1, 2, 3]})
        >>> there = fingerprint_rows(to_device(rows, np), np)
        >>> there.hexdigest() == Fingerprint(rows.schema).update(rows).hexdigest()
        True
    """
    if not table.columns or not table.rows:
        return Fingerprint(table.schema).update(to_arrow(table))
    tiles = (table.rows + TILE - 1) // TILE
    lanes = _tiles(table, tiles, xp) if on_device(xp) else _tiles_here(table, tiles)
    total = [
        int(np.dot(lane, powers(np.uint64(pow(ratio, TILE, _MODULUS)), tiles)[::-1]))
        for lane, ratio in zip(lanes.T, RATIOS)
    ]
    result = Fingerprint.parse(f"{table.rows:x}-{total[0]:016x}{total[1]:016x}")
    result.schema = table.schema
    return result


def _tiles(table: DeviceTable, tiles: int, xp: ModuleType) -> np.ndarray:
    packed = PackedColumns(table.columns, xp)
    out = xp.empty((tiles, 2), dtype=np.uint64)
    lead, rows = np.int64(tiles * TILE - table.rows), np.int64(table.rows)
    args = (*packed.args, SECOND_LANE, lead, rows, np.int32(_STEPS), xp.asarray(_weights()), out)
    kernel(xp, "row_hash", "fingerprint_tiles", BITS=32)((tiles,), (256,), args)
    return to_host(out)


def _tiles_here(table: DeviceTable, tiles: int) -> np.ndarray:
    """The twin of the kernel: shape (tiles, 2), where the first tile begins with rows that count nothing."""
    hashes = hash_rows(table.columns, np, exact=True)
    lanes = np.zeros((2, tiles * TILE), np.uint64)
    lanes[0, -len(hashes) :] = hashes
    lanes[1, -len(hashes) :] = mix(hashes ^ SECOND_LANE)
    steps = lanes.reshape(2, tiles, _STEPS, _STEP)
    out = np.zeros((2, tiles), np.uint64)
    for step in range(_STEPS):
        for lane, weights in enumerate(_weights()):
            out[lane] = out[lane] * weights[-1] + steps[lane, :, step] @ weights[:-1]
    return out.T


@cache
def _weights() -> np.ndarray:
    """For each lane its ratio to the powers 1023 to 0, then to the 1024; shape (2, 1025), uint64."""
    rising = [powers(np.uint64(ratio), _STEP + 1) for ratio in RATIOS]
    return np.array([np.append(table[:-1][::-1], table[-1]) for table in rising])
