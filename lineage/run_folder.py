"""Run folders: where they lie, and files in them that are written once, by whoever is first.

Local folders get such a file by a hard link, which fails if the name is taken. Where there are no hard links,
the file is opened exclusively, so that one that was cut short may stay. Object stores get a conditional put
(S3, Google Cloud Storage, Azure, ``memory://``). Other file systems can only be asked first, then written: there, two
drivers that write within the same moment could both believe that they were first.
"""

from __future__ import annotations

import inspect
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ..errors import ParameterError

#: ``memory://`` checks, then writes; both under this lock are one step
_MEMORY_LOCK = threading.Lock()


def default_root() -> str:
    """Return where journals lie: ``$HEADWATER_HOME/runs``, or ``~/.local/state/headwater/runs``."""
    home = os.environ.get("HEADWATER_HOME") or Path("~/.local/state/headwater").expanduser()
    return str(Path(home) / "runs") if "://" not in str(home) else f"{home}/runs"


def open_root(root: str | Path | None) -> tuple[fsspec.AbstractFileSystem, str]:
    """Open the folder that holds the runs.

    Args:
        root: a path or any fsspec URL; None is `default_root`.

    Returns:
        Its file system, and its path there without a slash at the end.

    Raises:
        ParameterError: no such file system is installed.
    """
    try:
        fs, base = fsspec.core.url_to_fs(str(default_root() if root is None else root))
    except (ValueError, ImportError) as error:
        raise ParameterError(f"journal {str(root)!r}: {error}. Give a folder or an fsspec URL.") from error
    return fs, base.rstrip("/")


def names_in(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, int]:
    """List the files of a folder as they are now: names to bytes; none if there is no such folder."""
    fs.invalidate_cache(folder)
    try:
        found = fs.ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    return {
        entry["name"].rpartition("/")[2]: entry.get("size") or 0 for entry in found if entry["type"] == "file"
    }


def creates_atomically(fs: fsspec.AbstractFileSystem) -> bool:
    """Tell whether `create` is one step on a file system, whoever else writes at the same time.

    Example:
        >>> creates_atomically(fsspec.filesystem("memory"))
        True
    """
    if isinstance(fs, (LocalFileSystem, MemoryFileSystem)):
        return True
    base, name = (
        (AsyncFileSystem, "_pipe_file")
        if isinstance(fs, AsyncFileSystem)
        else (fsspec.AbstractFileSystem, "pipe_file")
    )
    own = getattr(type(fs), name)
    return own is not getattr(base, name, None) and "mode" in inspect.signature(own).parameters


def create(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Make a file appear whole, unless there is one of that name.

    Args:
        fs: where.
        path: of the file; its folder exists.
        data: its bytes. A store's answer may get lost and the put be repeated, so they should be unique where
            it matters who wrote them: a file that has the same bytes counts as written.

    Raises:
        FileExistsError: there is a file of that name; it stays as it was.
    """
    if isinstance(fs, LocalFileSystem):
        create_local(path, data).close()
    elif isinstance(fs, MemoryFileSystem):
        with _MEMORY_LOCK:
            fs.pipe_file(path, data, mode="create")
    else:
        _put(fs, path, data)


def create_local(path: str, data: bytes, prepare: Callable[[BinaryIO], None] | None = None) -> BinaryIO:
    """Make a local file appear whole and prepared, unless there is one of that name.

    Args:
        path: of the file.
        data: its bytes.
        prepare: called with the open file before it appears, to lock it.

    Returns:
        The file, still open.

    Raises:
        FileExistsError: there is a file of that name.

    Source:
        open(2) of the Linux manual: a link counts by the link count, as NFS may lose the answer.
    """
    draft = f"{path}.{secrets.token_hex(4)}.tmp"
    file: BinaryIO = open(draft, "xb")  # noqa: SIM115 (returned open)
    try:
        _fill(file, data, prepare)
        try:
            os.link(draft, path)
        except FileExistsError:
            if os.fstat(file.fileno()).st_nlink != 2:
                raise
        except OSError:  # no hard links here
            file.close()
            file = open(path, "xb")  # noqa: SIM115
            try:
                _fill(file, data, prepare)
            except BaseException:
                os.unlink(path)
                raise
    except BaseException:
        file.close()
        raise
    finally:
        os.unlink(draft)
    return file


def _fill(file: BinaryIO, data: bytes, prepare: Callable[[BinaryIO], None] | None) -> None:
    if prepare is not None:
        prepare(file)
    file.write(data)
    file.flush()


def _put(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    if not creates_atomically(fs):
        fs.invalidate_cache(path.rpartition("/")[0])
        if fs.exists(path):
            raise FileExistsError(path)
        fs.pipe_file(path, data)
        return
    try:
        fs.pipe_file(path, data, mode="create")
    except Exception as error:
        # stores differ in how they say that the name is taken (s3fs: OSError), so look
        try:
            found = fs.cat_file(path)
        except FileNotFoundError:
            raise error from None
        if found != data:
            raise FileExistsError(path) from error
