"""Sample: rows drawn at random, the same rows on every run.

Randomness is counter-based (Philox, Salmon et al. 2011): row r of partition p draws the r-th number
of the stream keyed by (seed, stream, p), so that nothing but the declared input and seed decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import ParameterError
from .node import Node


@dataclass(frozen=True, eq=False, repr=False)
class Sample(Node):
    """Keep the rows whose draw u, uniform in [0, 1), falls in ``low <= u < high``.

    Two samples with the same seed and stream and touching ranges split the rows without overlap.

    Attributes:
        input: the rows.
        low, high: the range of draws to keep.
        seed: the user's seed.
        stream: lineage key of the input as declared, so that an optimized plan draws the same numbers.
    """

    input: Node
    low: float
    high: float
    seed: int
    stream: str

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ParameterError(
                f"a sample keeps a fraction between 0 and 1, and {self.low}..{self.high} isn't in it."
            )
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Sample:
        return Sample(inputs[0], self.low, self.high, self.seed, self.stream)

    def derive_schema(self) -> pa.Schema:
        return self.input.schema

    def parameters(self) -> Any:
        return (self.low, self.high, self.seed, self.stream)

    def describe(self) -> str:
        return f"{self.low:g} <= u < {self.high:g}, seed={self.seed}"
