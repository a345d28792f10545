"""Copies: on which other nodes the copies of a persisted block belong."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import xxhash

from .scheduler_events import BlocksFound
from .task import Block, PartitionResult


def choose_targets(
    key: str, results: Iterable[PartitionResult], nodes: Collection[str], replicas: int
) -> dict[str, list[Block]]:
    """Choose the nodes that get copies of a stage's blocks.

    Each block ranks the nodes by a hash of its own, so that the blocks of one node are spread over all others, and
    a node that dies or joins changes the place of few. (Thaler, Ravishankar: Using name-based mappings to
    increase hit rates, IEEE/ACM Transactions on Networking, 1998.)

    Args:
        key: lineage key of the stage.
        results: whose blocks are to be copied.
        nodes: that live.
        replicas: on how many nodes each block is to lie, its own one included.

    Returns:
        Node to what it gets.

    Example:
        >>> choose_targets("4f2a", [], ["a", "b"], 2)
        {}
    """
    chosen: dict[str, list[Block]] = {}
    for result in results:
        if result.block is None:
            continue
        others = [node for node in nodes if node != result.block.node]
        others.sort(key=lambda node: xxhash.xxh3_64_intdigest(f"{key}/{result.index}/{node}".encode()))
        for node in others[: replicas - 1]:
            chosen.setdefault(node, []).append(result.block)
    return chosen


def lacking_copies(stage: int, found: Sequence[BlocksFound], replicas: int, nodes: int) -> list[Block]:
    """Return the blocks of a stage that lie on too few nodes, one of each partition.

    Args:
        stage: its id.
        found: what the nodes have.
        replicas: on how many nodes each partition is to lie.
        nodes: how many there are.
    """
    places: dict[int, dict[str, Block]] = {}
    for event in found:
        for result in event.results:
            if result.block is not None and result.block.stage == stage:
                places.setdefault(result.index, {})[event.node] = result.block
    wanted = min(replicas, nodes)
    return [next(iter(blocks.values())) for blocks in places.values() if len(blocks) < wanted]
