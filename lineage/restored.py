"""What a journal vouches for, for a driver that resumes the run. Plain records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Fate(IntEnum):
    """What became of a partition's result."""

    NOT_RUN = 0
    #: a node has its block, or its sink has its rows
    HELD = 1
    #: nobody had to read it any more
    DELETED = 2
    #: its node died, it isn't where it was left, or it was made from bytes that changed
    LOST = 3
    #: nobody needed it: something made from it was there already
    SKIPPED = 4


@dataclass(frozen=True)
class Result:
    """The newest result of a partition.

    Attributes:
        attempt: that made it.
        rows, bytes: of it.
        fingerprint: that a result made again must match.
        node: id of the node that has it, or had it last.
        files: (path, target, rows, bytes) of each file staged for a sink; None for a block.
        fate: what became of it; only what is `Fate.HELD` should still be there.
        copies: ids of other nodes that have it, too.
    """

    attempt: int
    rows: int
    bytes: int
    fingerprint: str
    node: str
    files: tuple[tuple[str, str, int, int], ...] | None = None
    fate: Fate = Fate.HELD
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restored:
    """A run as its journal leaves it.

    Attributes:
        epoch: of its last driver.
        state: how that one ended; None if no record says that it did.
        results: for each stage, the newest result of each partition; None for one that never ran, or whose
            result was rolled back.
        boundaries: stage to the boundaries its rows are cut along, as base64 of an Arrow stream.
        committing: outputs whose commit was begun, and isn't known to have ended.
        committed: outputs whose commit has ended.
    """

    epoch: int
    state: str | None
    results: tuple[tuple[Result | None, ...], ...]
    boundaries: Mapping[int, str]
    committing: frozenset[str]
    committed: frozenset[str]
