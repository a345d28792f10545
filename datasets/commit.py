"""Stage and commit: files are written beside the destination, and become visible all at once or not at all.

A run stages under ``<parent>/.<name>.staging-<run>``. On a local disk the finished folder is built
there, of hard links, and renamed into place in one step. On other file systems, and on mount points,
files are moved one by one, and the marker ``_SUCCESS`` is written last: without it a folder isn't whole.
Every step may be cut off and done again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import DiskFullError, ParameterError, RunFailedError, SinkExistsError
from ..ops.sink import StagedFile, visible
from .filesystem import open_filesystem

#: written last, with the run's id; readers ignore names that start with an underscore
SUCCESS = "_SUCCESS"
_FINAL = "final"
_REPLACED = "replaced"
_COMMITTING = "committing"


@dataclass(frozen=True)
class Destination:
    """Where a sink's files belong.

    Attributes:
        fs: the file system.
        path: of the file or folder on it, without a trailing slash.
        single_file: whether the destination is one file.
    """

    fs: fsspec.AbstractFileSystem
    path: str
    single_file: bool

    @classmethod
    def at(cls, path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None, single_file: bool):
        """Make the destination of a path or URL."""
        fs, stripped = open_filesystem(path, storage_options)
        if isinstance(fs, LocalFileSystem):
            stripped = os.path.realpath(stripped)
        return cls(fs, stripped.rstrip("/") or "/", single_file)

    @property
    def local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    @cached_property
    def atomic(self) -> bool:
        """Whether one rename can put the whole result in place."""
        return self.local and not os.path.ismount(self.path)

    def staging(self, run: str) -> str:
        """The staging folder of a run, on the destination's own disk."""
        parent, _, name = self.path.rpartition("/")
        if self.local and not self.atomic:
            return f"{self.path}/.staging-{run}"
        return (
            f"{parent}/.{name}.staging-{run}"
            if parent or self.path.startswith("/")
            else f".{name}.staging-{run}"
        )

    def holds(self) -> list[str]:
        """Names of what is there already: the file itself, or what is in the folder; staging doesn't count."""
        try:
            if self.fs.info(self.path)["type"] != "directory":
                return [self.path.rpartition("/")[2]]
            names = [name.rstrip("/").rpartition("/")[2] for name in self.fs.ls(self.path, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if self.atomic or not name.startswith("."))

    def __str__(self) -> str:
        return self.path if self.local else self.fs.unstrip_protocol(self.path)


def check_destination(destination: Destination, overwrite: bool) -> None:
    """Raise, before anything is written, if the destination may not be written to.

    Raises:
        SinkExistsError: it holds data, and isn't to be overwritten.
        ParameterError: overwriting it would remove the home or the working folder.
    """
    held = destination.holds()
    if held and not overwrite:
        raise _exists(destination, held)
    if held and destination.local and os.path.isdir(destination.path):
        for name, folder in (("working folder", os.getcwd()), ("home folder", str(Path.home()))):
            if Path(os.path.realpath(folder)).is_relative_to(destination.path):
                raise ParameterError(f"{destination} is or holds the {name}. Name another.")


def commit(destination: Destination, run: str, files: Sequence[StagedFile], overwrite: bool) -> None:
    """Make exactly these files visible at the destination. Idempotent.

    Files without rows are left out, unless none has any.

    Args:
        destination: where.
        run: whose staging folder they are in.
        files: the files of the attempts that count.
        overwrite: whether to replace what is there.

    Raises:
        SinkExistsError: data appeared there meanwhile.
        RunFailedError: a staged file is gone.
        DiskFullError: no room for the last few bytes.
    """
    chosen = visible(files)
    targets = {file.target for file in chosen}
    if len(targets) < len(chosen) or (destination.single_file and len(chosen) > 1):
        raise RunFailedError(
            f"{destination}: {len(chosen)} staged files for {len(targets)} targets: a defect."
        )
    with disk_errors(str(destination)):
        if destination.single_file:
            _commit_file(destination, run, chosen, overwrite)
        elif destination.atomic:
            _commit_folder(destination, run, chosen, overwrite)
        else:
            _commit_one_by_one(destination, run, chosen, overwrite)
    abort(destination, run)


def abort(destination: Destination, run: str) -> None:
    """Remove a run's staging folder, and put back what was to be replaced and is not. Idempotent."""
    staging = destination.staging(run)
    if not destination.local:
        with suppress(FileNotFoundError):
            destination.fs.rm(staging, recursive=True)
        return
    if os.path.lexists(f"{staging}/{_REPLACED}") and not os.path.lexists(destination.path):
        os.rename(f"{staging}/{_REPLACED}", destination.path)
    shutil.rmtree(staging, ignore_errors=True)


def committed_by(destination: Destination) -> str | None:
    """The run that committed a folder, from its marker; None if there is none."""
    try:
        return json.loads(destination.fs.cat_file(f"{destination.path}/{SUCCESS}")).get("run")
    except (OSError, ValueError):
        return None


@contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Turn "no space left" into DiskFullError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"{path}: the disk is full ({error.strerror or error}). Nothing is visible at the destination; "
            "free some space or write elsewhere, and run again."
        ) from error


def _commit_file(destination: Destination, run: str, files: Sequence[StagedFile], overwrite: bool) -> None:
    path, staging = destination.path, destination.staging(run)
    if not files:
        return
    staged = f"{staging}/{files[0].path}"
    if not destination.fs.exists(staged):
        if not _is_result(destination, files[0]):
            raise _gone(staged)
    elif not destination.local:
        _begin(destination, staging, overwrite)
        destination.fs.mv(staged, path)
    elif not (os.path.exists(path) and os.path.samefile(staged, path)):
        if overwrite and os.path.isdir(path):
            os.rename(path, f"{staging}/{_REPLACED}")
        _put_file(staged, path, overwrite)
        _sync_folder(os.path.dirname(path))


def _put_file(staged: str, path: str, overwrite: bool) -> None:
    """Give a staged file its final name in one step, keeping the staged name, by which a repeat knows."""
    try:
        if overwrite:
            _remove(f"{staged}.final")
            _link(staged, f"{staged}.final")
            os.replace(f"{staged}.final", path)
        else:
            _link(staged, path)
    except FileExistsError:
        raise SinkExistsError(f"{path} appeared while the run was writing; it is left as it is.") from None


def _commit_folder(destination: Destination, run: str, files: Sequence[StagedFile], overwrite: bool) -> None:
    path, staging = destination.path, destination.staging(run)
    if committed_by(destination) == run:
        return
    final = f"{staging}/{_FINAL}"
    shutil.rmtree(final, ignore_errors=True)
    os.makedirs(final)
    for file in files:
        os.makedirs(os.path.dirname(f"{final}/{file.target}"), exist_ok=True)
        try:
            _link(f"{staging}/{file.path}", f"{final}/{file.target}")
        except FileNotFoundError:
            raise _gone(f"{staging}/{file.path}") from None
    Path(final, SUCCESS).write_bytes(_marker(run, files))
    sync_file(f"{final}/{SUCCESS}")
    for folder, _, _ in os.walk(final):
        _sync_folder(folder)
    if overwrite and destination.holds():
        _remove(f"{staging}/{_REPLACED}")
        os.rename(path, f"{staging}/{_REPLACED}")
    try:
        os.rename(final, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise _exists(destination, destination.holds()) from None
    _sync_folder(os.path.dirname(path))


def _commit_one_by_one(
    destination: Destination, run: str, files: Sequence[StagedFile], overwrite: bool
) -> None:
    fs, path, staging = destination.fs, destination.path, destination.staging(run)
    if committed_by(destination) == run:
        return
    _begin(destination, staging, overwrite)
    wanted = {f"{path}/{file.target}" for file in files}
    if fs.exists(f"{path}/{SUCCESS}"):
        fs.rm_file(f"{path}/{SUCCESS}")
    for name in sorted(fs.find(path)) if fs.exists(path) else ():
        if name not in wanted and not name.startswith(staging):
            fs.rm_file(name)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda file: _move(fs, f"{staging}/{file.path}", f"{path}/{file.target}"), files))
    fs.makedirs(path, exist_ok=True)
    fs.pipe_file(f"{path}/{SUCCESS}", _marker(run, files))


def _move(fs: fsspec.AbstractFileSystem, staged: str, target: str) -> None:
    if fs.exists(staged):
        fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        fs.mv(staged, target)
    elif not fs.exists(target):
        raise _gone(staged)


def _begin(destination: Destination, staging: str, overwrite: bool) -> None:
    """Note that a commit of several steps has begun: from then on, what is at the destination is its own."""
    fs, begun = destination.fs, f"{staging}/{_COMMITTING}"
    if not fs.exists(begun):
        held = destination.holds()
        if held and not overwrite:
            raise _exists(destination, held)
        fs.makedirs(staging, exist_ok=True)
        fs.pipe_file(begun, b"")


def _is_result(destination: Destination, file: StagedFile) -> bool:
    try:
        return destination.fs.info(destination.path)["size"] == file.bytes
    except FileNotFoundError:
        return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # No hard links here. Opened exclusively, so that it fails as a link would where something is.
        with open(source, "rb") as reading, open(target, "xb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
            os.fsync(writing.fileno())


def _marker(run: str, files: Sequence[StagedFile]) -> bytes:
    return json.dumps({"run": run, "files": len(files), "rows": sum(file.rows for file in files)}).encode()


def sync_file(path: str) -> None:
    """Wait until a local file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: str) -> None:
    with suppress(OSError):  # some file systems can't sync a folder
        sync_file(path)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            os.remove(path)


def _exists(destination: Destination, held: Sequence[str]) -> SinkExistsError:
    listed = ", ".join(repr(name) for name in held[:5]) + (
        f" and {len(held) - 5} more" if len(held) > 5 else ""
    )
    what = f"holds {listed}" if held and not destination.single_file else "exists"
    return SinkExistsError(
        f'{destination} {what}. Pass if_exists="overwrite" to replace it once the run has succeeded, '
        "or name another path."
    )


def _gone(path: str) -> RunFailedError:
    return RunFailedError(
        f"{path} is gone: it was staged, and something removed it before the commit. Run again."
    )
