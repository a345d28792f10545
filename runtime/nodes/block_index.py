"""Block index: what a block says of itself, in the metadata of an empty record batch at its end.

The batch lies behind all segments and has no rows, so the file reads as before in any Arrow reader.
Metadata is text, as the format asks: a checksum, then JSON with arrays packed, compressed and in base 64.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...ops.partitioner import KeySample

#: of what `encode` writes; a reader leaves other versions alone
FORMAT = 1
_NAME = "headwater"
_PACKED_LEVEL = 1


@dataclass(frozen=True)
class BlockLabel:
    """Whose result a block is, and what making it told.

    Attributes:
        run: id of the run that made it.
        stage, partition, attempt: which result of that run.
        key: lineage key of the stage; with the partition it names the content.
        fingerprint: digest of the rows, hexadecimal.
        seconds: wall-clock time that making the partition took.
        sample: of the partition's keys, if the stage is sampled.
    """

    run: str
    stage: int
    key: str
    partition: int
    attempt: int
    fingerprint: str
    seconds: float = 0.0
    sample: KeySample | None = None


@dataclass(frozen=True)
class LabelledBlock:
    """What is read from a block's end.

    Attributes:
        label: whose result it is.
        offsets: byte offset of each segment and the end of the last, shape (R + 1,), int64.
        rows: rows of each segment, shape (R,), int64.
    """

    label: BlockLabel
    offsets: np.ndarray
    rows: np.ndarray


def encode(label: BlockLabel, offsets: np.ndarray, rows: np.ndarray) -> dict[str, str]:
    """Return the metadata that describes a block.

    Args:
        label: whose result it is.
        offsets: byte offset of each segment and the end of the last, shape (R + 1,), int64.
        rows: rows of each segment, shape (R,), int64.

    Returns:
        One entry; some 300 bytes for a few segments, about four bytes for each of many.

    Example:
        >>> label = BlockLabel("r1", 0, "4f", 3, 0, "a7", seconds=0.5)
        >>> metadata = encode(label, np.array([200, 456, 456]), np.array([10, 0]))
        >>> decode(metadata).label == label, decode(metadata).offsets.tolist()
        (True, [200, 456, 456])
    """
    record: dict[str, Any] = {
        "format": FORMAT,
        "run": label.run,
        "stage": label.stage,
        "key": label.key,
        "partition": label.partition,
        "attempt": label.attempt,
        "fingerprint": label.fingerprint,
        "seconds": round(label.seconds, 6),
        "segments": len(rows),
        "offsets": _pack_numbers(np.diff(offsets, prepend=0)),
        "rows": _pack_numbers(rows),
    }
    if label.sample is not None:
        record["sample"] = {"rows": label.sample.rows, "keys": _pack_table(label.sample.keys)}
    text = json.dumps(record, separators=(",", ":"))
    return {_NAME: f"{zlib.crc32(text.encode()):08x}{text}"}


def decode(metadata: Mapping[Any, Any]) -> LabelledBlock | None:
    """Return what metadata says of its block; None if it isn't an index of this format.

    Raises:
        Exception: of many kinds, if it is damaged; `read_index` answers None.
    """
    entry = metadata.get(_NAME) or metadata.get(_NAME.encode()) or b""
    entry = entry.encode() if isinstance(entry, str) else entry
    checksum, text = entry[:8], entry[8:]
    if not text or zlib.crc32(text) != int(checksum, 16):
        return None
    record = json.loads(text)
    if record["format"] != FORMAT:
        return None
    count, sample = record["segments"], record.get("sample")
    label = BlockLabel(
        record["run"],
        record["stage"],
        record["key"],
        record["partition"],
        record["attempt"],
        record["fingerprint"],
        record["seconds"],
        KeySample(sample["rows"], _unpack_table(sample["keys"])) if sample else None,
    )
    offsets = np.cumsum(_unpack_numbers(record["offsets"], count + 1))
    return LabelledBlock(label, offsets, _unpack_numbers(record["rows"], count))


def read_index(path: Path | str) -> LabelledBlock | None:
    """Read a block's index from its end, without its rows.

    Args:
        path: of the file.

    Returns:
        The index; None if the file is gone, torn, older than indexes, or no block.
    """
    try:
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            if not reader.num_record_batches:
                return None
            batch, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            if batch.num_rows or not metadata:
                return None
            found = decode(metadata)
            whole = found is not None and _is_whole(found, file.size())
            return found if whole else None
    except Exception:  # a damaged file can fail anywhere in parsing; whatever it is, it is no block
        return None


def _is_whole(found: LabelledBlock, size: int) -> bool:
    steps = np.diff(found.offsets)
    return bool(found.offsets[0] > 0 and (steps >= 0).all() and found.offsets[-1] < size)


def _pack_numbers(numbers: np.ndarray) -> str:
    """Compress int64 numbers; equal bytes of neighbours are laid together, which most of them have."""
    planes = np.ascontiguousarray(numbers, dtype="<i8").view(np.uint8).reshape(-1, 8).T
    return _text(zlib.compress(planes.tobytes(), _PACKED_LEVEL))


def _unpack_numbers(text: str, count: int) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(8, count)
    return np.ascontiguousarray(planes.T).view("<i8").reshape(count).astype(np.int64)


def _pack_table(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return _text(zlib.compress(sink.getvalue(), _PACKED_LEVEL))


def _unpack_table(text: str) -> pa.Table:
    return pa.ipc.open_stream(zlib.decompress(base64.b64decode(text))).read_all()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
