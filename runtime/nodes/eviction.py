"""Eviction: which kept blocks to give up when room is needed. A pure function.

GreedyDual-Size: a block is worth the seconds that it saves for each byte it takes, on top of a floor that
rises to the worth of what was last given up. So blocks that haven't been used for long go first among
equals, and a block that is dear to make stays for longer, but not for ever.

Source:
    Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", USITS 1997; the floor is how they make
    GreedyDual of Young, "The k-server dual and loose competitiveness for paging", 1994, cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Evictable:
    """A block that may be given up.

    Attributes:
        key, partition: what it holds.
        bytes: that giving it up sets free.
        seconds: that making it took.
        floor: what the floor was when it was last used.
        used: when that was, in seconds since the epoch; decides among blocks of equal worth.
    """

    key: str
    partition: int
    bytes: int
    seconds: float
    floor: float = 0.0
    used: float = 0.0

    @property
    def worth(self) -> float:
        """Seconds a byte, above the floor at its last use."""
        return self.floor + self.seconds / max(self.bytes, 1)


def choose_victims(
    blocks: Iterable[Evictable], bytes_needed: int, floor: float = 0.0
) -> tuple[list[Evictable], float]:
    """Choose the blocks that are worth least, until enough bytes are free.

    Args:
        blocks: that may be given up.
        bytes_needed: how much room is to be made.
        floor: the floor as the last call left it; 0 at first.

    Returns:
        The blocks to give up, least worth first, all of them if they aren't enough; and the new floor,
        which is what a block that is used from now on starts from.

    Example:
        >>> cheap, dear = Evictable("a", 0, 100, 1.0), Evictable("b", 0, 100, 60.0)
        >>> victims, floor = choose_victims([dear, cheap], 50)
        >>> [victim.key for victim in victims], floor
        (['a'], 0.01)
    """
    victims: list[Evictable] = []
    freed = 0
    for block in sorted(blocks, key=_order):
        if freed >= bytes_needed:
            break
        victims.append(block)
        freed += block.bytes
        floor = max(floor, block.worth)
    return victims, floor


def _order(block: Evictable) -> tuple[float, float, str, int]:
    return block.worth, block.used, block.key, -block.partition
