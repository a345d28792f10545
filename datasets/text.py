"""TextSource: files of text as rows of one string column, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import CorruptFileError
from .file_source import rows_only
from .files import Paths, find_files
from .line_source import LineSource, Sample
from .lines import PARTITION_BYTES, LineRange, LineReader

_SCHEMA = pa.schema([("text", pa.string())])


class TextSource(LineSource):
    """Lines of text files. Made by `text_source`."""

    kind = "text"

    def read_tables(self, part: LineRange, columns: list[str]) -> Iterator[pa.Table]:
        for offset, block in self.reader.blocks(part):
            lines = split_lines(block)
            try:
                lines.validate(full=True)
            except pa.ArrowInvalid as error:
                number = self.reader.line_number(part.file, offset)
                raise CorruptFileError(
                    f"{part.file.path}, after line {number}: bytes that aren't UTF-8 ({error}). "
                    "Pass encoding=, as 'latin-1' or 'cp1252'."
                ) from error
            yield pa.Table.from_arrays([lines], schema=_SCHEMA) if columns else rows_only(len(lines))


def text_source(
    path: Paths,
    *,
    encoding: str = "utf-8",
    partition_bytes: int = PARTITION_BYTES,
    storage_options: Mapping[str, Any] | None = None,
    hive: bool = True,
) -> TextSource:
    """Make a source of text files: one column, ``text`` (string), a line each without its end.

    Args:
        path: a file, a folder, a glob or a list of them; local, or any fsspec URL. Files whose name
            says so (.gz, .bz2, .xz, .zst, .lz4, .br) are decompressed.
        encoding: of the text.
        partition_bytes: a file is cut into ranges of at most this many bytes, at line ends; compressed
            files, and those in another encoding than UTF-8, aren't cut.
        storage_options: for the fsspec file system.
        hive: whether ``key=value`` folders are columns.

    Returns:
        The source. Lines end with ``\\n`` or ``\\r\\n``; a last line needs no end.

    Raises:
        SourceNotFoundError: nothing is there.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "poem.txt")
        >>> _ = path.write_text("so much depends\\nupon\\n")
        >>> source = text_source(path)
        >>> [t.column("text").to_pylist() for s in source.splits() for t in source.read(s, ["text"])]
        [['so much depends', 'upon']]
    """
    files = find_files(path, storage_options, hive)
    # An offset a line of 40 bytes or so comes on top of the text itself.
    sample = Sample(pa.table({"text": ["x" * 40]}), 41)
    return TextSource(LineReader(files, encoding), _SCHEMA, {}, partition_bytes, sample)


def split_lines(block: bytes) -> pa.StringArray:
    """Split a block into lines without their ends, ``\\n`` or ``\\r\\n``; not validated.

    Example:
        >>> split_lines(b"a\\r\\n\\nb").to_pylist()
        ['a', '', 'b']
    """
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    stops = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    if len(block) and not block.endswith(b"\n"):
        stops = np.append(stops, len(block))
    offsets = np.zeros(len(stops) + 1, np.int32)
    offsets[1:] = stops - np.arange(len(stops))  # as many ends of lines are taken out before
    text = pa.py_buffer(block.replace(b"\n", b""))
    return pa.StringArray.from_buffers(len(stops), pa.py_buffer(offsets), text)
