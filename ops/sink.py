"""Sink: the protocol between a Write node and whatever data is written to.

Tasks stage files; the driver commits all of them once, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class StagedFile:
    """A file that one attempt of a task wrote under the sink's staging folder.

    Attributes:
        path: where it is staged, relative to the staging folder.
        target: where it belongs, relative to the destination; the same for every attempt.
        rows: rows in it.
        bytes: size of the file in bytes.
    """

    path: str
    target: str
    rows: int
    bytes: int


def visible(files: Sequence[StagedFile]) -> list[StagedFile]:
    """The files that a commit makes visible: those with rows, or all if none has any, to keep the schema."""
    return [file for file in files if file.rows] or list(files)


class Sink:
    """A destination for rows. Picklable; holds no open files."""

    #: short name for plan texts, as "parquet"
    kind: str = "sink"

    def check(self, schema: pa.Schema) -> None:
        """Raise, before anything runs, what can be known: a destination that exists, types it can't hold."""
        raise NotImplementedError

    @property
    def single_file(self) -> bool:
        """Whether the destination is one file, so that the planner gathers the rows to one partition."""
        return False

    def identity(self) -> Any:
        """Destination and options, for the lineage key."""
        raise NotImplementedError

    def stage(
        self, run: str, partition: int, attempt: int, stream: Iterator[pa.Table], schema: pa.Schema
    ) -> list[StagedFile]:
        """Write one partition's files under the staging folder of the run; called in a task."""
        raise NotImplementedError

    def is_staged(self, run: str, file: StagedFile) -> bool:
        """Whether a staged file of a run is still there, whole; asked by a driver that resumes the run."""
        raise NotImplementedError

    def commit(self, run: str, files: Sequence[StagedFile]) -> None:
        """Make exactly these files visible at the destination; called once, by the driver. Idempotent."""
        raise NotImplementedError

    def abort(self, run: str) -> None:
        """Remove the run's staging folder. Idempotent."""
        raise NotImplementedError

    def overlaps(self, other: Sink) -> bool:
        """Whether this sink and another write to the same place, or one into the other's."""
        return False

    def describe(self) -> str:
        """The sink in one line, for plan texts."""
        return self.kind
