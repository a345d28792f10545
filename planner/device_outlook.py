"""Outlook: what stages that read blocks save if these were left on a device; one stage is looked ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set

from ..ops.device.operators.partition import refusal
from .plan import Exchange, ShuffleLeaf, Stage, all_leaves

#: the seconds that a stage's cheapest way is expected to take if such stages leave their blocks on devices
Seconds = Callable[[Stage, Set[int]], float]


class Outlook:
    """What is saved further on where a stage cuts its rows on a device.

    Who reads them is placed twice, for the difference: as if all stages that it reads and that aren't placed yet left
    their rows on devices, and as if none did. It is shared among these by their bytes. That is exact for who reads
    one such stage; every stage is placed thrice at most, however many it reads.

    Args:
        stages: of the whole plan, on the host.
        seconds: of a stage, as if nobody read from it.
    """

    def __init__(self, stages: Sequence[Stage], seconds: Seconds):
        self._stages, self._seconds = stages, seconds
        self._readers: dict[int, list[Stage]] = {}
        for stage in stages:
            for parent in _shuffled(stage):
                self._readers.setdefault(parent, []).append(stage)
        self._saved: dict[int, float] = {}  # by reader, for each byte that it reads

    def gain(self, stage: Stage, left: Set[int]) -> float:
        """Return the seconds saved if a stage leaves its rows on a device.

        Args:
            stage: the one to be placed; it has an exchange.
            left: those before it that do leave theirs.
        """
        rates = (self._rate(reader, stage.id, left) for reader in self._readers.get(stage.id, ()))
        return stage.estimate.bytes * sum(rates)

    def _rate(self, reader: Stage, first: int, left: Set[int]) -> float:
        if reader.id not in self._saved:
            open = {id for id in _shuffled(reader) if id >= first and is_cut(self._stages[id])}
            size = sum(self._stages[id].estimate.bytes for id in sorted(open))
            saved = self._seconds(reader, left) - self._seconds(reader, left | open)
            self._saved[reader.id] = saved / size if size else 0.0
        return self._saved[reader.id]


def is_cut(stage: Stage) -> bool:
    """Whether a stage's rows are cut into segments, and a device could do it; a sample is drawn of rows in order."""
    return cuts(stage.exchange) and not stage.sample


def cuts(exchange: Exchange | None) -> bool:
    """Whether a device has a kernel for an exchange of several segments.

    Example:
        >>> cuts(None)
        False
    """
    return exchange is not None and exchange.count > 1 and refusal(exchange.partitioner) is None


def _shuffled(stage: Stage) -> Iterator[int]:
    """The stages whose segments a stage reads, each once."""
    read = (leaf.stage for leaf in all_leaves(stage.operator) if isinstance(leaf, ShuffleLeaf))
    return iter(dict.fromkeys(read))
