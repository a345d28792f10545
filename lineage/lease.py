"""Lease: which driver a run belongs to, as a number (epoch) that grows with each driver.

The folder of a run has a record for each epoch, ``epoch-000003.json``, written by whoever is first (see
`lineage.run_folder`). The newest one names the holder. Whether it lives is told by

- a lock on the record's file, in local and shared folders. The kernel lets go of it when the process dies;
- a file ``epoch-000003.beat`` with the time of the last renewal, elsewhere, and where files can't be locked.
  It compares clocks of two machines, which should agree to some seconds.

A lease keeps two drivers from starting by mistake. What makes it safe is the journal: a driver whose lease was
taken can't append any more.
"""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import FencedError, LeaseHeldError
from .owner import Owner, this_process
from .run_folder import create, create_local, names_in, open_root

#: seconds between two renewals
RENEW_SECONDS = 5.0
#: seconds without renewal after which a lease that isn't a lock is free
HELD_SECONDS = 20.0

_RECORD = re.compile(r"epoch-(\d{6,})\.json")
_FIRST_SEGMENT = "000000.json"


class _NoLocks(OSError):
    """Files can't be locked here."""


@dataclass(frozen=True)
class Holder:
    """The newest holder of a run.

    Attributes:
        epoch: its number.
        owner: its process; None if the record is being written.
        since: when it took the run, in seconds since the epoch.
        alive: whether it holds the run still.
    """

    epoch: int
    owner: Owner | None
    since: float
    alive: bool

    def __str__(self) -> str:
        when = f"since {datetime.fromtimestamp(self.since):%Y-%m-%d %H:%M:%S}"
        who = (
            "a process"
            if self.owner is None
            else f"process {self.owner.pid} on {self.owner.host or 'a machine'}"
        )
        return f"{who}, {when}"


class Lease:
    """The right to drive a run, until it is released or taken; made by `acquire`.

    Attributes:
        run: the run's id.
        epoch: how many held the run before.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, folder: str, run: str, epoch: int):
        self.run = run
        self.epoch = epoch
        self._fs, self._folder = fs, folder
        self._lock: BinaryIO | None = None
        self._held = True
        path = f"{folder}/{_record_name(epoch)}"
        record = {"time": time.time(), "owner": this_process().record(), "token": secrets.token_hex(4)}
        if isinstance(fs, LocalFileSystem):
            try:
                self._lock = create_local(path, _encoded({**record, "kept": "lock"}), _lock)
                return
            except _NoLocks:
                pass
        create(fs, path, _encoded({**record, "kept": "beat"}))

    def renew(self) -> None:
        """Say that the driver lives, and learn whether the run is still its own; to be called every
        `RENEW_SECONDS`.

        Raises:
            FencedError: another driver took the run over.
            OSError: the store didn't answer; try again, the lease holds for `HELD_SECONDS`.
        """
        if not self._held:
            return
        self._fs.invalidate_cache(self._folder)
        if self._fs.exists(f"{self._folder}/{_record_name(self.epoch + 1)}"):
            raise fenced(self._fs, self._folder, self.run)
        if self._lock is None:
            self._beat(time.time())

    def release(self) -> None:
        """Let go of the run; the next holder gets the next epoch. More calls do nothing."""
        if not self._held:
            return
        self._held = False
        if self._lock is None:
            self._beat(0.0)
        else:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child may have the file open, too
            self._lock.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self, now: float) -> None:
        self._fs.pipe_file(f"{self._folder}/{_beat_name(self.epoch)}", repr(now).encode())


def acquire(root: str | Path | None, run: str, *, steal: bool = False) -> Lease:
    """Take a run, as its next driver.

    Args:
        root: folder of journals, a path or any fsspec URL; None is the default one.
        run: the run's id; it needs no journal yet.
        steal: take it even from a driver that lives: one that hangs, or that can't be reached. That one
            stops with `FencedError` as soon as it writes to the journal or renews.

    Returns:
        The lease. Its epoch is 0 for a new run.

    Raises:
        LeaseHeldError: another driver holds the run and lives.

    Example:
        >>> with acquire(getfixture("tmp_path"), "20261123-153012-x7k2") as lease:
        ...     lease.epoch
        0
        >>> acquire(getfixture("tmp_path"), "20261123-153012-x7k2").epoch
        1
    """
    fs, base = open_root(root)
    folder = f"{base}/{run}"
    fs.makedirs(folder, exist_ok=True)
    while True:
        names = names_in(fs, folder)
        last = holder(fs, folder, names)
        if last is not None and last.alive and not steal:
            raise _held_error(run, last)
        # a journal without a record is of a driver that had no lease; it counts as epoch 0
        epoch = int(_FIRST_SEGMENT in names) if last is None else last.epoch + 1
        try:
            return Lease(fs, folder, run, epoch)
        except FileExistsError:  # somebody was faster
            continue


def holder(fs: fsspec.AbstractFileSystem, folder: str, names: Iterable[str]) -> Holder | None:
    """Tell who holds a run, or did last.

    Args:
        fs: of the run's folder.
        folder: of the run.
        names: of the files there.

    Returns:
        The newest holder; None if nobody ever held the run.
    """
    epochs = [int(match[1]) for name in names if (match := _RECORD.fullmatch(name))]
    if not epochs:
        return None
    epoch = max(epochs)
    path = f"{folder}/{_record_name(epoch)}"
    try:
        record = json.loads(fs.cat_file(path))
    except ValueError:  # being written, where there are no hard links; or its writer died meanwhile
        written = float(fs.info(path).get("mtime") or 0.0)
        return Holder(epoch, None, written, time.time() - written < HELD_SECONDS)
    owner = Owner(**record["owner"])
    alive = owner.is_alive() is not False and (
        _is_locked(path)
        if record["kept"] == "lock"
        else time.time() - _last_beat(fs, folder, epoch, record) < HELD_SECONDS
    )
    return Holder(epoch, owner, record["time"], alive)


def fenced(fs: fsspec.AbstractFileSystem, folder: str, run: str) -> FencedError:
    """Build the error for a driver that was replaced, naming the one that replaced it."""
    last = holder(fs, folder, names_in(fs, folder))
    by = "" if last is None or last.owner in (None, this_process()) else f": {last}"
    return FencedError(
        f"another driver took the run over, run {run}{by}. This one stops; nothing that it decided since counts. "
        f"`headwater runs` shows how the run goes on."
    )


def _held_error(run: str, last: Holder) -> LeaseHeldError:
    end = "" if last.owner is None else f" (`kill {last.owner.pid}` there)"
    return LeaseHeldError(
        f"run {run} is driven by {last}. Wait until it ends, or end it{end}. If it hangs or its machine can't "
        "be reached, take the run from it with steal=True; it stops as soon as it notices."
    )


def _lock(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise _NoLocks(*error.args) from error


def _is_locked(path: str) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who ask don't see each other
        except BlockingIOError:
            return True
    return False


def _last_beat(fs: fsspec.AbstractFileSystem, folder: str, epoch: int, record: dict[str, Any]) -> float:
    try:
        return float(fs.cat_file(f"{folder}/{_beat_name(epoch)}"))
    except FileNotFoundError:
        return float(record["time"])
    except ValueError:  # being written
        return time.time()


def _record_name(epoch: int) -> str:
    return f"epoch-{epoch:06d}.json"


def _beat_name(epoch: int) -> str:
    return f"epoch-{epoch:06d}.beat"


def _encoded(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
