"""Sample: rows drawn at random, the same rows on every run.

Randomness is counter-based (Philox, Salmon et al. 2011): row r of partition p draws the r-th number
of the stream keyed by (seed, stream, p), so that nothing but the declared input and seed decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ..errors import ParameterError
from .kernel import Broadcast, Context, Kernel, Stream
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


def random_stream(*key: str | int) -> np.random.Generator:
    """Return a generator of the random stream that a key names, the same in every process.

    Example:
        >>> random_stream(7, "rows", 0).random() == random_stream(7, "rows", 0).random()
        True
    """
    digest = xxhash.xxh3_128_intdigest("\0".join(repr(part) for part in key).encode())
    return np.random.Generator(np.random.Philox(key=[digest >> 64, digest & (2**64 - 1)]))


@dataclass(frozen=True)
class SampleKernel(Kernel):
    """Draws one number a row and keeps the rows whose number is in range; see `Sample`."""

    low: float
    high: float
    seed: int
    stream: str

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        draws = random_stream("sample", self.seed, self.stream, context.partition)
        for table in inputs[0]:
            u = draws.random(table.num_rows)
            rows = np.flatnonzero((self.low <= u) & (u < self.high))
            if len(rows):
                yield table.take(pa.array(rows)) if len(rows) < table.num_rows else table
