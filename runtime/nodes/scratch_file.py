"""ScratchFile: a file on a node that counts against its quota, and appears whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from dask.utils import format_bytes

from ...errors import DiskFullError
from .ledger import SpaceLedger

#: the name of an unfinished file: what it will be, and the process that writes it
DRAFT_NAME = re.compile(r"\..*\.(\d+)-[0-9a-f]+\.tmp")
#: bytes a file may grow before the ledger hears of it
_ACCOUNT_STEP = 1 << 20
_BUFFER_BYTES = 1 << 20
#: bytes of the disk that are left free, as long as there are kept blocks to give up
_LEAST_FREE = 256 << 20


def draft_of(target: Path) -> Path:
    """Return a new path, beside the target, for this process to write to before it renames."""
    return target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")


class Space:
    """The room in a scratch folder, shared by all processes that use it.

    Args:
        root: the folder.
        name: of its node, for errors.
        quota_bytes: most bytes to take; None leaves it to the disk.

    Attributes:
        make_room: gives up so many bytes of what can be done without, and returns how many they were.
    """

    make_room: Callable[[int], int] | None = None

    def __init__(self, root: Path, name: str, quota_bytes: int | None = None):
        self.root, self.name, self.quota_bytes = root, name, quota_bytes
        self.ledger = SpaceLedger(root)

    def used_bytes(self) -> int:
        """Bytes that published and unfinished files of all processes take."""
        return self.ledger.used()

    def reserve(self, bytes: int, quota_bytes: int | None = None) -> None:
        """Count bytes about to be written against the quota.

        Raises:
            DiskFullError: they don't fit.
        """
        quota = self._bound(quota_bytes)
        if self.make_room is not None:
            missing = bytes + _LEAST_FREE - shutil.disk_usage(self.root).free
            if missing > 0:
                self.make_room(missing)
        for _ in self._tries(bytes, quota):
            if self.ledger.reserve(bytes, quota):
                return
        raise self.full(bytes, quota)

    def publish(self, draft: Path, target: Path, reserved: int, quota_bytes: int | None = None) -> None:
        """Rename a finished file and count it as committed, both at once for all processes.

        Args:
            draft: the file.
            target: its new path; a file that is there is replaced.
            reserved: the bytes that were reserved for it.
            quota_bytes: most bytes that may be used; None is the folder's own.

        Raises:
            DiskFullError: it doesn't fit; nothing has changed.
        """
        size, quota = draft.stat().st_size, self._bound(quota_bytes)
        for _ in self._tries(size - reserved, quota):
            with self.ledger.locked() as balance:
                replaced = _size_of(target)
                if balance.fits(size - reserved - replaced, quota):
                    os.replace(draft, target)
                    balance.promise(-reserved)
                    balance.commit(size - replaced)
                    return
        raise self.full(size - reserved, quota)

    def full(self, needed: int, quota: int | None) -> DiskFullError:
        """Build the error for a full quota (given) or disk (None), not raised."""
        if quota is None:
            disk = shutil.disk_usage(self.root)
            limit = f"its disk has {format_bytes(disk.free)} free of {format_bytes(disk.total)}"
        else:
            limit = f"the quota is {format_bytes(quota)}"
        error = DiskFullError(
            f"{self.name}: the scratch folder {self.root} is full: "
            f"{format_bytes(self.ledger.used())} used by Headwater, {limit}, "
            f"{format_bytes(needed)} more needed. "
            "Raise the quota, set HEADWATER_SCRATCH to a folder on a larger disk, or add nodes."
        )
        error.scratch = str(self.root)
        return error

    @contextmanager
    def full_disk_explained(self) -> Iterator[None]:
        """Turn the system's error for a full disk into a DiskFullError."""
        try:
            yield
        except OSError as error:
            if isinstance(error, DiskFullError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self.full(_ACCOUNT_STEP, None) from error

    def _tries(self, needed: int, quota: int | None) -> Iterator[None]:
        """Yield for each try to get room: the first, and one after each attempt to make some."""
        yield
        while self.make_room is not None and quota is not None:
            freed = self.make_room(self.ledger.used() + needed - quota)
            yield
            if not freed:
                return

    def _bound(self, quota_bytes: int | None) -> int | None:
        return self.quota_bytes if quota_bytes is None else quota_bytes


class ScratchFile:
    """A file being written, counted against the quota as it grows; it stays only if it is published.

    Use it in a ``with``: what isn't published when the block ends is deleted.

    Attributes:
        path: where it will be published, relative to the scratch folder.
        draft: the path it is written under.
        stream: an Arrow output stream.
    """

    def __init__(self, space: Space, target: Path, quota_bytes: int | None = None):
        self.space, self._target, self._quota = space, target, quota_bytes
        self._reserved, self._published = 0, False
        self.path = target.relative_to(space.root).as_posix()
        self.draft = draft_of(target)
        self.stream = pa.BufferedOutputStream(pa.OSFile(str(self.draft), "wb"), _BUFFER_BYTES)

    def __enter__(self) -> ScratchFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def account(self) -> None:
        """Tell the ledger how far the file has grown; small steps are left for later.

        Raises:
            DiskFullError: the quota is exceeded.
        """
        growth = self.stream.tell() - self._reserved
        if growth >= _ACCOUNT_STEP:
            self.space.reserve(growth, self._quota)
            self._reserved += growth

    def reserve(self, size: int) -> None:
        """Count a size that is known beforehand, for a file that isn't written from front to back.

        Args:
            size: what the file will have in the end.

        Raises:
            DiskFullError: it doesn't fit.
        """
        if size > self._reserved:
            self.space.reserve(size - self._reserved, self._quota)
            self._reserved = size

    def finish(self) -> int:
        """Flush and close the draft, account for it, and return its size in bytes."""
        size = self._close()
        self.reserve(size)
        return size

    def publish(self) -> int:
        """Let the file appear under its name, and return its size in bytes.

        Raises:
            DiskFullError: the quota or the disk is full.
        """
        size = self._close()
        self.space.publish(self.draft, self._target, self._reserved, self._quota)
        self._reserved, self._published = 0, True
        return size

    def discard(self) -> None:
        """Delete the draft and give its bytes back; nothing happens to a published file."""
        if not self.stream.closed:
            with suppress(OSError):
                self.stream.close()
        if not self._published:
            self.draft.unlink(missing_ok=True)
        self.space.ledger.release(self._reserved)
        self._reserved = 0

    def _close(self) -> int:
        with self.space.full_disk_explained():
            self.stream.close()
        return self.draft.stat().st_size


def _size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
