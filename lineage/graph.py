"""Dependencies between a partition and the partitions it is made from (RDD paper, section 4)."""

from __future__ import annotations

from enum import Enum


class Dependency(Enum):
    """How a partition of an operator depends on the partitions of one of its inputs."""

    #: partition i reads partition i of the input (or one partition of one input, for a union)
    NARROW = "narrow"
    #: every partition may read a piece of every partition of the input
    WIDE = "wide"
    #: every partition reads the whole input
    BROADCAST = "broadcast"
