"""Inventory: the blocks that a folder holds, by what they say of themselves.

What was read of a file is remembered while its size and time of change stay, so asking again costs
a look at the folder.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..task import Block, PartitionResult
from .block_index import LabelledBlock, read_index


@dataclass(frozen=True)
class FoundBlock:
    """A block's file, and its index.

    Attributes:
        name: of the file.
        bytes: its size.
        index: what it says of itself.
    """

    name: str
    bytes: int
    index: LabelledBlock

    @property
    def places(self) -> tuple[str, str]:
        """Where a block of that content may lie, relative to a scratch folder: of its run, or kept."""
        label = self.index.label
        name = f"s{label.stage}-p{label.partition}-a{label.attempt}.arrow"
        return f"runs/{label.run}/blocks/{name}", f"kept/{label.key}/p{label.partition}.arrow"

    def result(self, node: str, path: str) -> PartitionResult:
        """Return it as what a task would have reported.

        Args:
            node: id of the node it lies on.
            path: its own, relative to the node's scratch folder.
        """
        label, rows = self.index.label, self.index.rows
        block = Block(
            label.stage,
            label.partition,
            label.attempt,
            node,
            path,
            self.index.offsets,
            rows,
            self.bytes,
            label.fingerprint,
        )
        return PartitionResult(
            label.partition, int(rows.sum()), label.fingerprint, block, sample=label.sample, run=label.run
        )


class FolderIndex:
    """Reads the indexes of a folder's blocks, each file once as long as it doesn't change."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known: dict[str, tuple[tuple[int, int, int], LabelledBlock | None]] = {}

    def find(self) -> list[FoundBlock]:
        """List the blocks that can be read, by name; files that are no blocks are passed over."""
        known, found = self._known, []
        seen: dict[str, tuple[tuple[int, int, int], LabelledBlock | None]] = {}
        for name, stat in _files(self.folder):
            mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            entry = known.get(name)
            if entry is None or entry[0] != mark:
                entry = (mark, read_index(f"{self.folder}/{name}"))
            seen[name] = entry
            if entry[1] is not None:
                found.append(FoundBlock(name, stat.st_size, entry[1]))
        self._known = seen  # what is gone is forgotten
        found.sort(key=lambda block: block.name)
        return found


def pack_inventory(node: str, results: Iterable[PartitionResult]) -> dict[str, Any]:
    """Return a worker's answer that names the blocks its node has, for `unpack_inventory`."""
    return {"status": "OK", "node": node, "results": pickle.dumps(tuple(results), protocol=5)}


def unpack_inventory(reply: Mapping[str, Any]) -> tuple[str, tuple[PartitionResult, ...]]:
    """Return the node that answered, and the blocks it has.

    Example:
        >>> unpack_inventory(pack_inventory("n1", []))
        ('n1', ())
    """
    return reply["node"], pickle.loads(reply["results"])


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".arrow") and not entry.name.startswith("."):
                    try:
                        yield entry.name, entry.stat()
                    except FileNotFoundError:  # deleted since
                        continue
    except FileNotFoundError:
        return
