"""Who is in the gang and who carries which shards; decisions without I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: shards from start up to stop
Range = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A worker that could be a member, as it tells of itself.

    Attributes:
        address: of the worker.
        node: id of its node.
        endpoint: where its collectives listen.
        step: how many steps the state that it has includes; -1 if it has none.
        draining: it is about to leave.
        shards: those whose files its node has.
    """

    address: str
    node: str
    endpoint: str = ""
    step: int = -1
    draining: bool = False
    shards: frozenset[int] = field(default_factory=frozenset)


def even_ranges(shards: int, members: int) -> list[Range]:
    """Cut shards into contiguous ranges whose sizes differ by one at most; the larger ones come first.

    Example:
        >>> even_ranges(8, 3)
        [(0, 3), (3, 6), (6, 8)]
    """
    size, more = divmod(shards, members)
    starts = [rank * size + min(rank, more) for rank in range(members + 1)]
    return list(zip(starts, starts[1:]))


def choose_members(candidates: Sequence[Candidate], most: int, leader: str) -> list[Candidate]:
    """Choose the members of a generation.

    Args:
        candidates: those that answered.
        most: how many there may be.
        leader: address of the coordinator's worker, which is always one of them.

    Returns:
        The members by (node, address); those with a newer state, then with more shards at hand, are preferred.
    """

    def rank(candidate: Candidate) -> tuple[bool, int, int, str]:
        return (candidate.address != leader, -candidate.step, -len(candidate.shards), candidate.address)

    willing = [c for c in candidates if not c.draining or c.address == leader]
    chosen = sorted(willing, key=rank)[:most]
    return sorted(chosen, key=lambda c: (c.node, c.address))


def assign(
    members: Sequence[Candidate], shards: int, local_bytes: Mapping[str, Sequence[float]]
) -> tuple[list[Candidate], list[Range]]:
    """Give each range of shards to the member that has most of it at hand.

    Args:
        members: of the generation.
        shards: how many there are, no fewer than members.
        local_bytes: node id to the bytes of each shard's rows that its blocks hold.

    Returns:
        The members in the order of their ranks, and the ranges of shards by rank.
    """
    ranges = even_ranges(shards, len(members))

    def at_hand(member: Candidate, span: Range) -> tuple[int, float]:
        held = sum(shard in member.shards for shard in range(*span))
        return held, sum(local_bytes.get(member.node, [0.0] * shards)[span[0] : span[1]])

    pairs = [(at_hand(m, span), -i, -rank) for i, m in enumerate(members) for rank, span in enumerate(ranges)]
    by_rank: dict[int, Candidate] = {}
    taken: set[int] = set()
    for _, member, rank in sorted(pairs, reverse=True):
        if -rank not in by_rank and -member not in taken:
            by_rank[-rank] = members[-member]
            taken.add(-member)
    return [by_rank[rank] for rank in range(len(members))], ranges
