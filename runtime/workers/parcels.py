"""Parcels: what a node that leaves has to hand over, what is most wanted first, and which other node gets what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..nodes.node_store import NodeStore

#: a node is asked for at most this much at once, so that each success is told soon
_BATCH_BYTES = 256 << 20
_BATCH_FILES = 64


@dataclass(frozen=True)
class Parcel:
    """A block's file.

    Attributes:
        path: relative to the scratch folder, here and where it goes.
        bytes: its size.
        run: id of the run that it belongs to; empty for one that outlived its run.
        part: (stage, partition, attempt) in that run.
        key: lineage key under which it is kept beyond its run; empty if it isn't.
    """

    path: str
    bytes: int
    run: str = ""
    part: tuple[int, int, int] | None = None
    key: str = ""


def collect(store: NodeStore) -> list[list[Parcel]]:
    """List what lies on a node, in groups: blocks of runs, kept blocks that are pinned or in use, other kept ones.

    A block that has a name in both places comes once, as a block of its run.
    """
    runs: list[Parcel] = []
    keys = {_inode(path): path.parent.name for path in store.kept.glob("*/p*.arrow")}
    for run in store.runs():
        for block in store.blocks(run):
            key = keys.pop(_inode(store.resolve(block.path)), "")
            part = (block.stage, block.partition, block.attempt)
            runs.append(Parcel(block.path, block.bytes, run, part, key))
    held: list[Parcel] = []
    others: list[Parcel] = []
    for path in sorted(store.kept.glob("*/p*.arrow")):
        if keys.get(_inode(path)) is not None:
            with suppress(FileNotFoundError):
                key = path.parent.name
                parcel = Parcel(f"kept/{key}/{path.name}", path.stat().st_size, key=key)
                (held if any(pins(store, key)) or users(store, key) else others).append(parcel)
    return [group for group in (runs, held, others) if group]


def share_out(
    parcels: Iterable[Parcel], room: Mapping[str, int]
) -> tuple[dict[str, list[Parcel]], list[Parcel]]:
    """Decide which node gets what: large ones first, each to the node that has got least so far.

    Args:
        parcels: to be shared out.
        room: node id to the bytes it can take.

    Returns:
        Node id to its parcels; and those that fit nowhere.

    Example:
        >>> parcels = [Parcel(f"b{number}", size) for number, size in enumerate((5, 3, 2, 9))]
        >>> shares, rest = share_out(parcels, {"n1": 6, "n2": 8})
        >>> {node: [parcel.path for parcel in share] for node, share in shares.items()}
        {'n1': ['b0'], 'n2': ['b1', 'b2']}
        >>> [parcel.path for parcel in rest]
        ['b3']
    """
    given = dict.fromkeys(sorted(room), 0)
    shares: dict[str, list[Parcel]] = {node: [] for node in given}
    rest = []
    for parcel in sorted(parcels, key=lambda parcel: (-parcel.bytes, parcel.path)):
        fitting = [node for node in given if given[node] + parcel.bytes <= room[node]]
        if not fitting:
            rest.append(parcel)
            continue
        node = min(fitting, key=lambda node: (given[node], node))
        given[node] += parcel.bytes
        shares[node].append(parcel)
    return {node: share for node, share in shares.items() if share}, rest


def batches(parcels: Sequence[Parcel]) -> Iterator[list[Parcel]]:
    """Cut a share into parts that travel together: of one run each, and of bounded size."""
    batch: list[Parcel] = []
    size = 0
    for parcel in sorted(parcels, key=lambda parcel: parcel.run):  # stable: large ones still come first
        full = size + parcel.bytes > _BATCH_BYTES or len(batch) == _BATCH_FILES
        if batch and (full or parcel.run != batch[0].run):
            yield batch
            batch, size = [], 0
        batch.append(parcel)
        size += parcel.bytes
    if batch:
        yield batch


def owner_record(store: NodeStore, run: str) -> dict[str, Any] | None:
    """Return the record of a run's driver, as `lineage.owner.Owner` takes it; None if there is none to be read."""
    return _json(store.root / "runs" / run / "owner.json")


def pins(store: NodeStore, key: str) -> Iterator[dict[str, Any] | None]:
    """Yield the owners of a kept key's pins; None for a pin without one."""
    for mark in (store.kept / key / "pins").glob("*"):
        yield _json(mark)


def users(store: NodeStore, key: str) -> list[str]:
    """Return the runs with a folder on this node that read a kept key's blocks."""
    return sorted(mark.name for mark in (store.kept / key / "users").glob("*") if store.has_run(mark.name))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return -1
