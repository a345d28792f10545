"""SpaceLedger: how many bytes of scratch a node's processes use together, kept in a locked file.

Two sums are kept: committed bytes lie in published files, pending bytes are promised to files that a
living process is still writing. What a dead process was promised is forgotten when space gets short.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass
class Balance:
    """What the ledger says.

    Attributes:
        committed: bytes in published files.
        pending: process id, as text, to the bytes promised to it.
    """

    committed: int = 0
    pending: dict[str, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return self.committed + sum(self.pending.values())

    def promise(self, change: int) -> None:
        """Add to, or take from, what the calling process is promised."""
        pid = str(os.getpid())
        left = max(0, self.pending.pop(pid, 0) + change)
        if left:
            self.pending[pid] = left

    def fits(self, change: int, quota: int | None) -> bool:
        """Whether so many more bytes stay within a quota, if need be without what the dead were promised."""
        if quota is not None and self.used + change > quota:
            self.forget_the_dead()
            return self.used + change <= quota
        return True

    def commit(self, change: int) -> None:
        """Add to, or take from, the bytes in published files."""
        self.committed = max(0, self.committed + change)

    def forget_the_dead(self) -> None:
        self.pending = {pid: n for pid, n in self.pending.items() if psutil.pid_exists(int(pid))}


class SpaceLedger:
    """The ledger of one scratch folder, safe among processes and threads of a machine.

    Args:
        folder: where its one small file lies.

    Example:
        >>> ledger = SpaceLedger(getfixture("tmp_path"))
        >>> ledger.reserve(60, quota=100), ledger.reserve(60, quota=100)
        (True, False)
        >>> ledger.used()
        60
    """

    def __init__(self, folder: Path):
        self._path = folder / "ledger.json"

    @contextmanager
    def locked(self) -> Iterator[Balance]:
        """Hold the ledger alone; changes to the balance are kept when the block ends without an error."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            balance = _read(file)
            before = (balance.committed, dict(balance.pending))
            yield balance
            if before != (balance.committed, balance.pending):
                _write(file, balance)
        finally:
            os.close(file)

    def reserve(self, bytes: int, quota: int | None) -> bool:
        """Promise bytes to the calling process.

        Args:
            bytes: how many more.
            quota: most bytes that may be used; None counts without a bound.

        Returns:
            Whether they fit; if not, nothing is promised.
        """
        with self.locked() as balance:
            if not balance.fits(bytes, quota):
                return False
            balance.promise(bytes)
            return True

    def release(self, bytes: int) -> None:
        """Give back bytes that the calling process was promised."""
        if bytes:
            with self.locked() as balance:
                balance.promise(-bytes)

    def used(self) -> int:
        """Bytes committed and pending."""
        with self.locked() as balance:
            return balance.used


def _read(file: int) -> Balance:
    try:
        return Balance(**json.loads(os.pread(file, 1 << 20, 0)))
    except (ValueError, TypeError):  # new, or torn: `NodeStore.purge_orphans` counts again
        return Balance()


def _write(file: int, balance: Balance) -> None:
    text = json.dumps({"committed": balance.committed, "pending": balance.pending}).encode()
    os.pwrite(file, text, 0)
    os.ftruncate(file, len(text))
