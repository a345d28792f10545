"""What ends a group: a member that is lost, late or gone its own way. Whoever is missing is named by rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...errors import HeadwaterError


class GroupBrokenError(HeadwaterError, RuntimeError):
    """The group can't go on: it was abandoned or closed, or its members call different operations."""


class PeerLostError(GroupBrokenError, ConnectionError):
    """Members of the group are gone.

    Attributes:
        missing: their ranks, in order.
    """

    def __init__(self, message: str, missing: Iterable[int] = ()):
        super().__init__(message)
        self.missing: tuple[int, ...] = tuple(sorted(set(missing)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.missing)


class PeerTimeoutError(PeerLostError, TimeoutError):
    """Members of the group didn't come to an operation, or didn't finish it, before its deadline."""


def ranks_text(ranks: Iterable[int]) -> str:
    """Write ranks as a reader expects them.

    Example:
        >>> ranks_text([3, 1])
        'ranks 1 and 3'
    """
    names = [str(rank) for rank in sorted(set(ranks))]
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names[:-1])} and {names[-1]}"
