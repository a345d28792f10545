"""LeaseBook: what a worker keeps on its device for others that are copying it, and until when. Pure.

A lease ends when its borrower says so, when the borrower's process is gone, when it has lasted too long, or with its
run. What a borrower has copied counts only if its lease hadn't ended when it was done; so a lease may end at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lease:
    """Something that is kept for a borrower.

    Attributes:
        token: names the lease; the borrower has chosen it.
        run: whose it is.
        borrower: the process.
        held: what is kept.
        sizes: the bytes of each block that is kept by that; several leases may keep the same one.
        until: when it ends at the latest, in seconds of the book's clock.
    """

    token: str
    run: str
    borrower: Hashable
    held: Any
    sizes: Mapping[Hashable, int]
    until: float


class LeaseBook:
    """The leases of one worker. Not for several threads at once.

    Args:
        seconds: that a lease lasts at most.
        most_bytes: of all blocks that are kept.

    Attributes:
        bytes: of them now.
        broken: leases that ended before their borrower said so, which may still read what was kept.

    Example:
        >>> book = LeaseBook(10.0, 100)
        >>> book.grant("t1", "run", "somebody", ["table"], {"block": 60}, now=0.0)
        True
        >>> book.grant("t2", "run", "somebody", ["table"], {"block": 60, "other": 60}, now=1.0)
        False
        >>> book.end("t1"), book.end("t1"), book.bytes
        (True, False, 0)
    """

    def __init__(self, seconds: float, most_bytes: int):
        self.seconds, self.most_bytes = seconds, most_bytes
        self.bytes = self.broken = 0
        self._leases: dict[str, Lease] = {}
        #: by block: how many leases keep it
        self._users: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, token: str) -> bool:
        return token in self._leases

    def grant(
        self, token: str, run: str, borrower: Hashable, held: Any, sizes: Mapping[Hashable, int], now: float
    ) -> bool:
        """Keep something for a borrower; the arguments are those of `Lease`.

        Returns:
            Whether it is kept; not if that were more than ``most_bytes``, or the token is in use.
        """
        more = sum(size for block, size in sizes.items() if not self._users[block])
        if token in self._leases or self.bytes + more > self.most_bytes:
            return False
        self._leases[token] = Lease(token, run, borrower, held, dict(sizes), now + self.seconds)
        self._users.update(sizes.keys())
        self.bytes += more
        return True

    def end(self, token: str) -> bool:
        """End a lease; returns whether it had lasted until now."""
        lease = self._leases.pop(token, None)
        if lease is None:
            return False
        for block, size in lease.sizes.items():
            self._users[block] -= 1
            if not self._users[block]:
                del self._users[block]
                self.bytes -= size
        return True

    def end_late(self, now: float) -> int:
        """End those that have lasted too long; returns how many."""
        return self._end(lease for lease in self._leases.values() if lease.until <= now)

    def end_of_run(self, run: str) -> int:
        """End those of a run; returns how many."""
        return self._end(lease for lease in self._leases.values() if lease.run == run)

    def end_of_borrower(self, borrower: Hashable) -> int:
        """End those of a process; returns how many."""
        return self._end(lease for lease in self._leases.values() if lease.borrower == borrower)

    def borrowers(self) -> set[Hashable]:
        """The processes that have leases."""
        return {lease.borrower for lease in self._leases.values()}

    def _end(self, leases: Iterable[Lease]) -> int:
        ended = sum(self.end(token) for token in [lease.token for lease in leases])
        self.broken += ended
        return ended
