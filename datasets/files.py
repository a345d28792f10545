"""Files of a dataset: paths, folders and globs on any fsspec URL become a list of files with identities."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, TypeVar

import fsspec
import pyarrow as pa
import xxhash
from fsspec.implementations.local import LocalFileSystem

from ..errors import CorruptFileError, ParameterError, SourceNotFoundError, TypeMismatchError, did_you_mean
from .filesystem import open_filesystem
from .hive import HiveColumns, hive_pairs

T = TypeVar("T")
R = TypeVar("R")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_MAGIC = re.compile(r"[*?\[]")
#: what file systems call a file's version, best first
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "checksum",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
_THREADS = 32


@dataclass(frozen=True)
class DataFile:
    """One file.

    Attributes:
        path: on its file system, without the protocol.
        size: in bytes.
        version: what changes when the file does: etag, checksum or modification time; "" if unknown.
        values: the values of the hive columns, in their order.
    """

    path: str
    size: int
    version: str
    values: tuple[Any, ...] = ()


class FileSet:
    """The files a dataset is read from, in the order of its rows.

    Pickles without the list, which can be long: a split names its own file. After unpickling the list
    is made again when asked for, and must be the same.

    Args:
        fs: the file system.
        patterns: paths, folders and globs on it.
        hive: whether ``key=value`` folders below a folder or glob are columns.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, patterns: tuple[str, ...], hive: bool = True):
        self.fs = fs
        self.patterns = patterns
        self.hive = hive
        self._digest: str | None = None

    @property
    def local(self) -> bool:
        """Whether the files are on this machine's own file system."""
        return isinstance(self.fs, LocalFileSystem)

    @cached_property
    def _listing(self) -> tuple[tuple[DataFile, ...], pa.Schema]:
        found: dict[str, tuple[dict[str, Any], tuple[tuple[str, str], ...]]] = {}
        for pattern in self.patterns:
            for root, info in _expand(self.fs, pattern):
                pairs = hive_pairs(_relative(info["name"], root)) if self.hive else ()
                found.setdefault(info["name"], (info, pairs))
        hive = HiveColumns.infer({path: pairs for path, (_, pairs) in found.items()})
        files = tuple(
            DataFile(path, int(info["size"] or 0), _version(info), hive.values(pairs))
            for path, (info, pairs) in found.items()
        )
        digest = _digest(files)
        if self._digest not in (None, digest):
            raise CorruptFileError(
                f"{self.describe()}: the files changed since the plan was made. Plan again."
            )
        return files, hive.schema

    @property
    def files(self) -> tuple[DataFile, ...]:
        """All files, in the order of the rows: as given, and sorted naturally inside each pattern."""
        return self._listing[0]

    @property
    def hive_schema(self) -> pa.Schema:
        """The hive columns and their types."""
        return self._listing[1]

    @property
    def digest(self) -> str:
        """A digest of paths, sizes and versions: 32 hexadecimal digits."""
        if self._digest is None:
            self._digest = _digest(self.files)
        return self._digest

    def __getstate__(self) -> dict[str, Any]:
        return {"fs": self.fs, "patterns": self.patterns, "hive": self.hive, "_digest": self.digest}

    def open(self, file: DataFile) -> BinaryIO:
        """Open a file to read bytes, unbuffered if it is local.

        Raises:
            SourceNotFoundError: it is gone.
            CorruptFileError: it isn't the file that was listed any more.
        """
        try:
            if not self.local:
                return self.fs.open(file.path, "rb")
            self._check_unchanged(file)
            return open(file.path, "rb", buffering=0)
        except FileNotFoundError as error:
            raise _gone(file) from error

    def open_arrow(self, file: DataFile, mapped: bool = False) -> pa.NativeFile:
        """Open a file for Arrow, memory-mapped if that is asked for and it is local."""
        if self.local:
            try:
                self._check_unchanged(file)
                return pa.memory_map(file.path) if mapped and file.size else pa.OSFile(file.path)
            except FileNotFoundError as error:
                raise _gone(file) from error
        return pa.PythonFile(self.open(file), mode="r")

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Call a function that reads files on each item, in threads; results in order."""
        if len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(_THREADS, len(items))) as pool:
            return list(pool.map(function, items))

    def describe(self) -> str:
        """Where the files are, in a few words."""
        shown = ", ".join(self.patterns[:2]) + (", …" if len(self.patterns) > 2 else "")
        return shown if self.local else self.fs.unstrip_protocol(shown)

    def _check_unchanged(self, file: DataFile) -> None:
        stat = os.stat(file.path)
        if stat.st_size != file.size or str(stat.st_mtime) != file.version:
            raise CorruptFileError(
                f"{file.path} changed since the plan was made ({file.size} bytes then, {stat.st_size} now). "
                "Plan again, and let no one write to it meanwhile."
            )


def find_files(path: Paths, storage_options: Mapping[str, Any] | None = None, hive: bool = True) -> FileSet:
    """Find the files that a path, a folder, a glob or a list of them stands for.

    Folders are searched below, names that start with ``_`` or ``.`` left out, and sorted naturally
    (``part-2`` before ``part-10``). ``key=value`` folders below the folder or the fixed part of the
    glob become columns.

    Args:
        path: local paths or fsspec URLs (all of one file system), as strings or paths.
        storage_options: for the fsspec file system, as credentials.
        hive: whether to read ``key=value`` folders as columns.

    Returns:
        The files; listed now.

    Raises:
        SourceNotFoundError: a path doesn't exist, or a folder or glob holds no files.
        ParameterError: no path, or paths on several file systems.
        SchemaMismatchError: files below folders with different keys.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp(), "year=2024")
        >>> folder.mkdir()
        >>> _ = (folder / "rides.csv").write_text("id\\n1\\n")
        >>> [(file.size, file.values) for file in find_files(folder.parent).files]
        [(5, (2024,))]
    """
    given = [path] if isinstance(path, str | os.PathLike) else path
    if not isinstance(given, Sequence) or not all(isinstance(p, str | os.PathLike) for p in given):
        raise TypeMismatchError(f"a path is a string, a Path, or a list of them, not {path!r}.")
    if not given:
        raise ParameterError("no path was given: the list is empty. Write a path, a folder or a glob.")
    opened = [open_filesystem(p, storage_options) for p in given]
    if len({type(fs) for fs, _ in opened}) > 1:
        protocols = sorted({type(fs).__name__ for fs, _ in opened})
        raise ParameterError(
            f"the paths are on several file systems ({', '.join(protocols)}). Read each, and union them."
        )
    files = FileSet(opened[0][0], tuple(stripped for _, stripped in opened), hive)
    _ = files.files
    return files


def natural_key(path: str) -> list[list[tuple[int, int, str]]]:
    """Sort key under which numbers inside names go by value, and folders before their contents.

    Example:
        >>> sorted(["b/p10", "b/p9", "a"], key=natural_key)
        ['a', 'b/p9', 'b/p10']
    """
    return [
        [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part)]
        for part in path.split("/")
    ]


def _expand(fs: fsspec.AbstractFileSystem, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (the folder that hive keys count from, info) for each file a pattern stands for."""
    info = _info(fs, pattern)
    if info is not None and info["type"] != "directory":
        yield info["name"], info
    elif info is not None:
        root = info["name"].rstrip("/")
        yield from ((root, child) for child in _in_folder(fs, root))
    elif _MAGIC.search(pattern):
        yield from _in_glob(fs, pattern)
    else:
        raise _missing(fs, pattern)


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        return fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _in_folder(fs: fsspec.AbstractFileSystem, root: str) -> list[dict[str, Any]]:
    infos = [i for i in _below(fs, root) if not _hidden(_relative(i["name"], root))]
    if not infos:
        raise SourceNotFoundError(
            f"{root} is a folder with no files to read (names that start with '_' or '.' don't count). "
            f"{_contents(fs, root)}"
        )
    return infos


def _below(fs: fsspec.AbstractFileSystem, root: str) -> list[dict[str, Any]]:
    infos = [resolved for info in fs.find(root, detail=True).values() for resolved in _resolved(fs, info)]
    return sorted(infos, key=lambda info: natural_key(info["name"]))


def _resolved(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> list[dict[str, Any]]:
    """What an entry stands for: itself if it is a file; fsspec lists links without following them."""
    if info.get("islink"):
        path = info["name"]
        info = fs.info(path)
        loops = (os.path.realpath(os.path.dirname(path)) + "/").startswith(os.path.realpath(path) + "/")
        if info["type"] == "directory" and not loops:
            return _below(fs, path)
    return [info] if info["type"] == "file" else []


def _in_glob(fs: fsspec.AbstractFileSystem, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    root = _fixed_part(pattern)
    wants_hidden = re.search(r"/[_.]", _relative(pattern, root)) or _relative(pattern, root).startswith(
        ("_", ".")
    )
    infos: dict[str, dict[str, Any]] = {}
    for name, info in fs.glob(pattern, detail=True).items():
        children = _below(fs, name) if info["type"] == "directory" else _resolved(fs, info)
        infos.update((child["name"], child) for child in children)
    kept = [n for n in infos if wants_hidden or not _hidden(_relative(n, root))]
    if not kept:
        raise SourceNotFoundError(f"the glob {pattern} matches no file. {_contents(fs, root)}")
    yield from ((root, infos[name]) for name in sorted(kept, key=natural_key))


def _fixed_part(pattern: str) -> str:
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    return "/".join(parts[:first]) or "/"


def _relative(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/") if path.startswith(root) else path


def _hidden(relative: str) -> bool:
    # Hive keys may start with an underscore.
    return any(
        part.startswith(".") or (part.startswith("_") and "=" not in part) for part in relative.split("/")
    )


def _version(info: Mapping[str, Any]) -> str:
    return next((str(info[key]) for key in _VERSIONS if info.get(key) is not None), "")


def _digest(files: Sequence[DataFile]) -> str:
    lines = (repr((f.path, f.size, f.version, f.values)) for f in files)
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def _missing(fs: fsspec.AbstractFileSystem, path: str) -> SourceNotFoundError:
    parent, _, name = path.rstrip("/").rpartition("/")
    info = _info(fs, parent or "/")
    if info is None or info["type"] != "directory":
        return SourceNotFoundError(f"{path} doesn't exist: there is no folder {parent}. Check the path.")
    names = _names(fs, parent or "/")
    return SourceNotFoundError(f"{path} doesn't exist. In {parent or '/'}: {did_you_mean(name, names)}")


def _contents(fs: fsspec.AbstractFileSystem, folder: str) -> str:
    info = _info(fs, folder)
    if info is None or info["type"] != "directory":
        return f"There is no folder {folder}."
    names = _names(fs, folder)
    listed = ", ".join(repr(name) for name in names[:20]) or "nothing"
    return f"{folder} holds {listed}{f' and {len(names) - 20} more' if len(names) > 20 else ''}."


def _names(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    return sorted(
        (name.rstrip("/").rpartition("/")[2] for name in fs.ls(folder, detail=False)), key=natural_key
    )


def _gone(file: DataFile) -> SourceNotFoundError:
    return SourceNotFoundError(f"{file.path} is gone: it was there when the plan was made. Plan again.")
