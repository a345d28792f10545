"""Lines: files cut into byte ranges and read as blocks of whole lines.

A line belongs to the range its first byte lies in, so ranges are read apart and no line twice. Lines
end with ``\\n`` or ``\\r\\n``.
"""

from __future__ import annotations

import codecs
import io
import lzma
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ..errors import CorruptFileError, ParameterError
from .files import DataFile, FileSet
from .sizes import even_cuts

#: bytes read and parsed at once
BLOCK_BYTES = 4 << 20
#: bytes of the first file that types are inferred from
SAMPLE_BYTES = 1 << 20
#: how much text, in bytes, a partition holds
PARTITION_BYTES = 32 << 20

_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".br": "brotli"}
_BOM = codecs.BOM_UTF8


@dataclass(frozen=True)
class LineRange:
    """A split of a file of lines: the lines whose first byte is in [start, stop).

    ``names`` are a CSV file's own columns where their order isn't the dataset's.
    """

    file: DataFile
    start: int
    stop: int
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LineReader:
    """Reads blocks of whole lines.

    Attributes:
        files: what the lines are in.
        encoding: of the text; blocks are UTF-8 whatever it is.
        quote: the quote character inside which a newline ends no line; None if every newline ends one.
    """

    files: FileSet
    encoding: str = "utf-8"
    quote: str | None = None

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ParameterError(
                f"there is no encoding {self.encoding!r}. Write 'utf-8' or 'latin-1'."
            ) from None

    def splittable(self, file: DataFile) -> bool:
        """Whether the file may be read from the middle."""
        return self.quote is None and not is_compressed(file) and self._utf8

    def ranges(self, file: DataFile, start: int, partition_bytes: int) -> list[tuple[int, int]]:
        """Cut a file from ``start`` into even ranges of at most ``partition_bytes``, if it is splittable."""
        size = max(0, file.size - start)
        if not self.splittable(file):
            return [(start, sys.maxsize)] if file.size else []
        return (
            [(start + a, start + b) for a, b in even_cuts(size, -(-size // partition_bytes))] if size else []
        )

    def blocks(self, part: LineRange, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, block) for whole lines that start in the range, until its end.

        Raises:
            CorruptFileError: a compressed file is broken, or the text isn't in the encoding.
        """
        with self.files.open(part.file) as raw:
            stream = self._decoded(raw, part.file)
            try:
                yield from self._blocks(stream, part.start, part.stop, block_bytes)
            except UnicodeDecodeError as error:
                raise CorruptFileError(
                    f"{part.file.path} isn't {self.encoding}: {error}. Pass encoding=."
                ) from error
            except (pa.ArrowException, OSError, EOFError, lzma.LZMAError) as error:
                if not is_compressed(part.file):
                    raise
                raise CorruptFileError(
                    f"{part.file.path} can't be decompressed: {error} It may be cut short or misnamed."
                ) from error

    def head(self, file: DataFile, start: int = 0, size: int = SAMPLE_BYTES) -> tuple[int, bytes]:
        """Return the offset and text of the first whole lines from ``start`` on: about ``size`` bytes."""
        first, lines = start, b""
        for offset, block in self.blocks(LineRange(file, start, sys.maxsize), size):
            first = first if lines else offset
            lines += block
            if len(lines) >= size // 2:
                break
        return first, lines

    def line_number(self, file: DataFile, offset: int) -> int:
        """Return the number, from 1, of the line at an offset; reads all before it."""
        seen = 0
        for start, block in self.blocks(LineRange(file, 0, max(1, offset))):
            seen += block[: max(0, offset - start)].count(b"\n")
        return seen + 1

    @property
    def _utf8(self) -> bool:
        return codecs.lookup(self.encoding).name in ("utf-8", "utf-8-sig", "ascii")

    def _decoded(self, raw: BinaryIO, file: DataFile) -> Any:
        suffix = _suffix(file)
        stream: Any = raw
        if suffix in _CODECS:
            stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), _CODECS[suffix])
        elif suffix == ".xz":
            stream = lzma.LZMAFile(raw)  # noqa: SIM115
        return stream if self._utf8 else _Recoded(stream, self.encoding)

    def _blocks(self, stream: Any, start: int, stop: int, block_bytes: int) -> Iterator[tuple[int, bytes]]:
        position, carry = _seek_line(stream, start, block_bytes)
        while position < stop:
            data = stream.read(block_bytes)
            block = carry + data
            if not block:
                return
            end = self._end(block, stop - position, final=not data)
            if end:
                mark = len(_BOM) if position == 0 and block.startswith(_BOM) else 0
                yield position + mark, block[mark:end]
            if not data or (end and position + end >= stop):
                return
            position, carry = position + end, block[end:]

    def _end(self, block: bytes, stop: int, final: bool) -> int:
        """Where to cut a block of lines: after its last whole line, or the last that starts before stop."""
        if self.quote is not None:
            return len(block) if final else _last_record_end(block, self.quote)
        if stop <= len(block):
            last = block.find(b"\n", stop - 1)
            if last >= 0:
                return last + 1
        return len(block) if final else block.rfind(b"\n") + 1

    def halve(self, block: bytes) -> int:
        """Return a cut between two lines near the middle of a block, or 0 if it is one line."""
        middle = len(block) // 2
        if self.quote is None:
            cut = block.rfind(b"\n", 0, middle) + 1 or block.find(b"\n", middle) + 1
        else:
            ends = _record_ends(block, self.quote)
            before = ends[ends <= middle]
            cut = int(before[-1]) if len(before) else int(ends[0]) if len(ends) else 0
        return 0 if cut >= len(block) else cut


class _Recoded(io.RawIOBase):
    """A stream of UTF-8 over one in another encoding."""

    def __init__(self, stream: Any, encoding: str):
        super().__init__()
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        while not self._left:
            data = self._stream.read(size)
            self._left = self._decoder.decode(data, final=not data).encode()
            if not data:
                break
        taken, self._left = self._left[:size], self._left[size:]
        return taken


def is_compressed(file: DataFile) -> bool:
    """Whether the file's suffix is of a compressed one.

    Example:
        >>> is_compressed(DataFile("rides.csv.gz", 1, ""))
        True
    """
    suffix = _suffix(file)
    return suffix in _CODECS or suffix == ".xz"


def _suffix(file: DataFile) -> str:
    name = file.path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower()


def _seek_line(stream: Any, start: int, block_bytes: int) -> tuple[int, bytes]:
    """Go to the first line that starts at or after ``start``; return its offset and what was read of it."""
    if start == 0:
        return 0, b""
    position = start - 1
    if hasattr(stream, "seekable") and stream.seekable():
        stream.seek(position)
    else:
        _skip(stream, position, block_bytes)
    while data := stream.read(min(block_bytes, 1 << 16)):
        newline = data.find(b"\n")
        if newline >= 0:
            return position + newline + 1, data[newline + 1 :]
        position += len(data)
    return position, b""


def _skip(stream: Any, size: int, block_bytes: int) -> None:
    while size:
        data = stream.read(min(size, block_bytes))
        if not data:
            return
        size -= len(data)


def _record_ends(block: bytes, quote: str) -> np.ndarray:
    """Offsets just after the newlines that no quotes enclose; a doubled quote keeps the parity."""
    data = np.frombuffer(block, np.uint8)
    newlines = np.flatnonzero(data == ord("\n"))
    quotes = np.flatnonzero(data == ord(quote))
    return newlines[np.searchsorted(quotes, newlines) % 2 == 0] + 1


def _last_record_end(block: bytes, quote: str) -> int:
    ends = _record_ends(block, quote)
    return int(ends[-1]) if len(ends) else 0
