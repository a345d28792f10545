"""Scans: which splits of a source a scan has to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..ops.expressions.expr import Expr, Literal
from ..ops.scan import Scan
from ..ops.source import Source, Split


@dataclass(frozen=True)
class EmptySource(Source):
    """No rows, in one split: what stands for a scan of which every split is pruned.

    It keeps the rule that every stage has at least one partition.
    """

    full: pa.Schema
    kind = "empty"

    @property
    def schema(self) -> pa.Schema:
        return self.full

    def identity(self) -> Any:
        return ("empty", self.full)

    def splits(self) -> Sequence[Split]:
        return (Split(0, 0, 0),)

    def read(
        self, split: Split, columns: Sequence[str], predicate: Expr | None = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        return iter(())


def kept_splits(scan: Scan, splits: Sequence[Split], prune: bool = True) -> tuple[Split, ...]:
    """Return the splits that may hold rows of a scan.

    Args:
        scan: with the predicate and limit pushed into it.
        splits: all splits of its source.
        prune: whether to ask the source's statistics.

    Returns:
        The splits in order; those a predicate excludes are left out, and those behind the ones that
        hold as many rows as the limit, where the numbers of rows are exact.
    """
    predicate = scan.predicate
    if isinstance(predicate, Literal) and predicate.scalar.as_py() is not True:
        return ()
    if predicate is not None and prune:
        return tuple(scan.source.prune(splits, predicate))
    if predicate is None and scan.limit is not None:
        return _first_rows(splits, scan.limit)
    return tuple(splits)


def _first_rows(splits: Sequence[Split], limit: int) -> tuple[Split, ...]:
    kept: list[Split] = []
    rows = 0
    for split in splits:
        if rows >= limit:
            break
        kept.append(split)
        if split.rows is None:
            return tuple(splits)
        rows += split.rows
    return tuple(kept)
