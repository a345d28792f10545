"""Persist: the same rows, kept on the nodes between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from ..errors import ParameterError, did_you_mean
from .node import Node

#: where persisted rows are held
LEVELS = ("disk", "memory")
#: most nodes that a block may be copied to
MOST_REPLICAS = 100


@dataclass(frozen=True, eq=False, repr=False)
class Persist(Node):
    """Keep what the input gives, so that a later run need not compute it.

    What is below is planned on its own, so that it comes out the same whoever reads it. How the rows are kept is
    no part of their lineage key.

    Attributes:
        input: the rows.
        level: "disk", or "memory" to hold their pages there as far as the system allows.
        replicas: on how many nodes each partition lies, if there are so many.
    """

    input: Node
    level: str = "disk"
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ParameterError(
                f"persist(level={self.level!r}): write 'disk' or 'memory'. {did_you_mean(str(self.level), LEVELS)}"
            )
        if not isinstance(self.replicas, int) or isinstance(self.replicas, bool):
            raise ParameterError(f"persist(replicas={self.replicas!r}): give a whole number of nodes, as 2.")
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise ParameterError(
                f"persist(replicas={self.replicas}): give 1 for the node that computes a partition, 2 for a copy on "
                f"another one, and so on up to {MOST_REPLICAS}."
            )
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Persist:
        return Persist(inputs[0], self.level, self.replicas)

    def derive_schema(self) -> pa.Schema:
        return self.input.schema

    def parameters(self) -> Any:
        return ()

    def describe(self) -> str:
        return self.level + (f", {self.replicas} replicas" if self.replicas > 1 else "")


class Wish(Protocol):
    """How something is to be kept: a `Persist`, or what the planner makes of it."""

    @property
    def level(self) -> str:
        """One of `LEVELS`."""

    @property
    def replicas(self) -> int:
        """On how many nodes."""


def strongest(one: Wish, other: Wish) -> tuple[str, int]:
    """Return the level and the replicas that satisfy two wishes."""
    return max(one.level, other.level, key=LEVELS.index), max(one.replicas, other.replicas)
