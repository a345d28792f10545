"""PlanOptions: the few numbers a plan depends on. Never the number of workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlanOptions:
    """What the planner may be told.

    Attributes:
        partition_bytes: size in memory, in bytes, that a partition after an exchange aims at.
        broadcast_bytes: largest estimated side, in bytes, of a join that is broadcast.
        max_partitions: most partitions an exchange makes.
        disabled_rules: names of optimizer rules not to run, as "predicate_pushdown".
    """

    partition_bytes: int = 64 << 20
    broadcast_bytes: int = 32 << 20
    max_partitions: int = 10_000
    disabled_rules: frozenset[str] = frozenset()
