"""ShardSource: which blocks' rows make up each shard, and how they get into its file."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import CorruptFileError, PlanError
from ...ops.training.features import Features
from ...ops.training.program import BLOCK_ROWS, Shard
from ...ops.training.sampling import Order
from ..nodes.node_store import NodeStore
from ..task import CancelledTask, Segment
from ..workers.fetch import Fetcher, Inputs, Relocate
from .mapped_shard import MappedShard
from .shard_file import ShardFile, ShardWriter, widened
from .streamed_shard import StreamedShard

#: rows that are looked at together where nothing is written
_SCANNED_ROWS = 65_536


@dataclass(frozen=True)
class ShardPiece:
    """A run of rows of one segment: ``rows`` of them from row ``start`` of the segment on."""

    segment: Segment
    start: int
    rows: int


@dataclass(frozen=True)
class ShardPlan:
    """Where the rows of a shard lie.

    Attributes:
        index: of the shard.
        first_row: number of its first row among all rows of the input.
        rows: how many it has.
        pieces: where they are, in order.
    """

    index: int
    first_row: int
    rows: int
    pieces: tuple[ShardPiece, ...]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments it reads, in order."""
        return tuple(piece.segment for piece in self.pieces)

    def part(self, start: int, stop: int) -> ShardPlan:
        """Return the plan of some of its rows, counted within the shard."""
        first = self.first_row + start
        return ShardPlan(self.index, first, stop - start, _cut(self.pieces, start, stop - start))


def plan_shards(segments: Sequence[Segment], bounds: np.ndarray) -> list[ShardPlan]:
    """Find the rows of each shard in the blocks of an input.

    Args:
        segments: the input's, in order; each is all of a partition.
        bounds: first row of each shard, and the end; shape (shards + 1,), see `sampling.shard_bounds`.

    Returns:
        A plan for each shard.

    Raises:
        PlanError: the segments have another number of rows.
    """
    rows = sum(segment.rows for segment in segments)
    if rows != int(bounds[-1]):
        raise PlanError(f"{len(segments)} blocks have {rows} rows, and the shards {int(bounds[-1])}")
    ends = np.cumsum([segment.rows for segment in segments], dtype=np.int64)
    plans = []
    for index, (first, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist())):
        i = int(np.searchsorted(ends, first, side="right"))
        pieces = []
        while first < stop:
            begin = int(ends[i]) - segments[i].rows
            count = min(stop, int(ends[i])) - first
            if count:
                pieces.append(ShardPiece(segments[i], first - begin, count))
            first, i = first + count, i + 1
        plans.append(ShardPlan(index, int(bounds[index]), stop - int(bounds[index]), tuple(pieces)))
    return plans


def cached_rows(rows: int, share: float) -> int:
    """Return how many of a shard's rows are kept as arrays, from its first on.

    Args:
        rows: of the shard.
        share: 0 to 1.

    Returns:
        All for 1; else whole blocks, so that the rest is cut into the same blocks as if all were kept.

    Example:
        >>> cached_rows(20_000, 0.5)
        8192
    """
    return rows if share >= 1 else int(rows * share) // BLOCK_ROWS * BLOCK_ROWS


@dataclass(frozen=True)
class PreparedShard:
    """A shard whose rows have been seen.

    Attributes:
        plan: where its rows lie.
        cached: the file with its first rows, or all; None if none are kept.
        widths: of its vector columns; without those of which it has no row.
        target_range: smallest and largest target; None without rows or target.
    """

    plan: ShardPlan
    cached: ShardFile | None
    widths: Mapping[str, int]
    target_range: tuple[float, float] | None

    @property
    def is_whole(self) -> bool:
        """Whether no rows have to be read from blocks any more."""
        return (self.cached.rows if self.cached else 0) == self.plan.rows


@dataclass
class ShardSource:
    """Reads shards of one input on one node. The run is open there.

    Attributes:
        run: the run's id.
        name: unique for the stage, the input and the number of shards, as ``s3-training-8``; begins the files' names.
        schema: of the input's rows.
        features: which columns become which arrays; resolved.
        store: the node's.
        fetcher: reads blocks.
        nodes: node id to the addresses of its living workers.
        memory_bytes: remote bytes to hold in memory at once.
        quota_bytes: bound of the scratch folder; None is the store's own.
        relocate: tells where lost segments are now; None makes a loss an error.
        cancelled: once set, reading stops.
    """

    run: str
    name: str
    schema: pa.Schema
    features: Features
    store: NodeStore
    fetcher: Fetcher
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    memory_bytes: int = 64 << 20
    quota_bytes: int | None = None
    relocate: Relocate | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def prepare(
        self, plans: Iterable[ShardPlan], cache: float = 1.0, widths: Mapping[str, int] | None = None
    ) -> Iterator[PreparedShard]:
        """Bring shards onto this node, one after another; what is there already is used.

        Args:
            plans: the shards.
            cache: share of each shard's rows to keep as arrays, see `cached_rows`. The others are looked at once.
            widths: of vector columns, if known.

        Raises:
            HeadwaterError: a row that can't be trained on.
            FetchFailedError: blocks are lost, and there is no ``relocate``.
            DiskFullError: a file doesn't fit.
            CancelledTask: the flag was set.
        """
        for group in self._groups(list(plans)):
            counts = [cached_rows(plan.rows, cache) for plan in group]
            files = [self.find(plan.part(0, count)) for plan, count in zip(group, counts)]
            lacking = [plan for plan, file in zip(group, files) if file is None or file.rows < plan.rows]
            wanted = [segment for plan in lacking for segment in plan.segments]
            with (
                self.store.spill_folder(self.run, self.name) as folder,
                self._opened(wanted, folder) as inputs,
            ):
                for plan, count, file in zip(group, counts, files):
                    yield self._prepared(plan, count, file, inputs, widths)

    def find(self, plan: ShardPlan) -> ShardFile | None:
        """Return the file of a shard, or of a part of one, if this node has it."""
        if not plan.rows:
            return None
        with suppress(FileNotFoundError, CorruptFileError):
            found = ShardFile.open(self.store.shard_path(self.run, self._file_name(plan)))
            if (found.index, found.first_row, found.rows) == (plan.index, plan.first_row, plan.rows):
                return found
        return None

    def tables(self, plan: ShardPlan) -> Iterator[pa.Table]:
        """Read the rows of a plan from the blocks, in order."""
        with (
            self.store.spill_folder(self.run, self.name) as folder,
            self._opened(plan.segments, folder) as inputs,
        ):
            yield from self._read(plan, inputs)

    def _prepared(
        self,
        plan: ShardPlan,
        count: int,
        file: ShardFile | None,
        inputs: Inputs,
        widths: Mapping[str, int] | None,
    ) -> PreparedShard:
        head, rest = plan.part(0, count), plan.part(count, plan.rows)
        if file is None and count:
            file = self._write(head, inputs, widths)
        found, span = dict(file.widths if file else widths or {}), file.target_range if file else None
        row = rest.first_row
        for table in self._read(rest, inputs):
            found = self.features.widths(table, found)
            for start in range(0, table.num_rows, _SCANNED_ROWS):
                arrays = self.features.to_arrays(table.slice(start, _SCANNED_ROWS), found, row + start)
                if "y" in arrays:
                    span = widened(span, arrays["y"])
            row += table.num_rows
        return PreparedShard(plan, file, found, span)

    def _write(self, plan: ShardPlan, inputs: Inputs, widths: Mapping[str, int] | None) -> ShardFile:
        with self.store.create_shard(self.run, self._file_name(plan), self.quota_bytes) as file:
            writer = ShardWriter(
                file, self.features, self.schema, plan.index, plan.first_row, plan.rows, widths
            )
            for table in self._read(plan, inputs):
                writer.write(table)
            writer.publish()
        return ShardFile.open(self.store.resolve(file.path))

    def _read(self, plan: ShardPlan, inputs: Inputs) -> Iterator[pa.Table]:
        for piece in plan.pieces:
            skip, lacking = piece.start, piece.rows
            for table in inputs.tables([piece.segment], self.schema):
                self._check_cancelled()
                if skip < table.num_rows:
                    part = table.slice(skip, lacking)
                    lacking -= part.num_rows
                    yield part
                skip = max(0, skip - table.num_rows)
                if not lacking:
                    break
            if lacking:
                raise PlanError(
                    f"a block of {piece.segment.rows} rows ends {lacking} rows early: {piece.segment}"
                )

    def _groups(self, plans: Sequence[ShardPlan]) -> Iterator[list[ShardPlan]]:
        """Cut plans into runs that are fetched together, so that a large block isn't fetched for each shard in it."""
        group: list[ShardPlan] = []
        lengths: dict[Segment, int] = {}
        for plan in plans:
            more = {segment: segment.length for segment in plan.segments}
            if group and more.keys() - lengths.keys() and sum((lengths | more).values()) > self.memory_bytes:
                yield group
                group, lengths = [], {}
            group.append(plan)
            lengths |= more
        if group:
            yield group

    def _opened(self, segments: Iterable[Segment], folder: Path) -> Inputs:
        return self.fetcher.open(
            segments, self.nodes, self.memory_bytes, folder, self.cancelled, self.quota_bytes, self.relocate
        )

    def _file_name(self, plan: ShardPlan) -> str:
        return f"{self.name}-{plan.index}-{plan.rows}"

    def _check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise CancelledTask(f"reading of {self.name} in run {self.run} was cancelled")


def _cut(pieces: Iterable[ShardPiece], skip: int, rows: int) -> tuple[ShardPiece, ...]:
    """The pieces of some of the rows that pieces have together."""
    kept = []
    for piece in pieces:
        count = min(piece.rows - skip, rows)
        if count > 0:
            kept.append(ShardPiece(piece.segment, piece.start + skip, count))
            rows -= count
        skip = max(0, skip - piece.rows)
    return tuple(kept)


def open_shard(
    prepared: PreparedShard,
    source: ShardSource,
    order: Order,
    widths: Mapping[str, int],
    validation: Shard | None = None,
) -> MappedShard | StreamedShard:
    """Make a prepared shard ready for a program.

    Args:
        prepared: what `ShardSource.prepare` gave.
        source: that one.
        order: in which its rows are drawn.
        widths: of vector columns, as all shards together have them, see `features.agreed_widths`.
        validation: its part of the validation rows, or None.

    Raises:
        ParameterError: a width isn't known.
    """
    plan, cached = prepared.plan, prepared.cached
    if cached is None:
        layout = source.features.layout(source.schema, widths)
        cached = ShardFile.without_rows(plan.index, plan.first_row, layout, widths)
    if prepared.is_whole:
        return MappedShard(cached, order, validation)
    rest = plan.part(cached.rows, plan.rows)
    return StreamedShard(cached, plan.rows, lambda: source.tables(rest), source.features, order, validation)
