"""Bad lines: found by halving the block that doesn't parse, then reported or skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pyarrow as pa

from ..errors import BadRecordError, ParameterError
from .lines import LineRange, LineReader

logger = logging.getLogger("headwater.datasets")


class Salvage:
    """Parses blocks of lines; where one doesn't parse, finds its bad lines by halving.

    Args:
        reader: knows lines.
        part: what is being read, for errors.
        parse: makes a table of a block at an offset, or raises `pa.ArrowInvalid`.
        skip: whether bad lines are left out; else the first raises BadRecordError.
        explain: says what is wrong with one line, and what to write instead, from the error.
    """

    def __init__(
        self,
        reader: LineReader,
        part: LineRange,
        parse: Callable[[int, bytes], pa.Table],
        skip: bool,
        explain: Callable[[pa.ArrowInvalid, bytes], str],
    ):
        self.reader = reader
        self.part = part
        self.parse = parse
        self.skip = skip
        self.explain = explain
        self.skipped = 0

    def tables(self) -> Iterator[pa.Table]:
        """Yield a table for each block, bad lines dealt with."""
        for offset, block in self.reader.blocks(self.part):
            yield from self._tables(offset, block)
        if self.skipped:
            logger.warning("%s: skipped %d bad lines", self.part.file.path, self.skipped)

    def bad_line(self, offset: int, line: bytes, problem: str) -> None:
        """Deal with one bad line: count it, or raise."""
        self.skipped += 1
        if not self.skip:
            number = self.reader.line_number(self.part.file, offset)
            shown = line.decode("utf-8", "replace").rstrip("\r\n")
            shown = shown if len(shown) <= 200 else shown[:200] + "…"
            raise BadRecordError(f"{self.part.file.path}, line {number}: {problem} The line: {shown!r}")

    def _tables(self, offset: int, block: bytes) -> Iterator[pa.Table]:
        if not block.strip(b"\r\n"):
            return
        try:
            table = self.parse(offset, block)
        except pa.ArrowInvalid as error:
            cut = self.reader.halve(block)
            if cut:
                yield from self._tables(offset, block[:cut])
                yield from self._tables(offset + cut, block[cut:])
            else:
                self.bad_line(offset, block, self.explain(error, block))
            return
        yield table


def check_policy(where: str, on_bad_line: str) -> None:
    """Raise ParameterError for an unknown policy."""
    if on_bad_line not in ("error", "skip"):
        raise ParameterError(f"{where}: on_bad_line is 'error' or 'skip', not {on_bad_line!r}.")
