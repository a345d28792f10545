"""LocalShard: a shard in this process's memory, and a loop that runs a program on such shards, without a gang."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from ..backend import Array, array_namespace
from .program import BLOCK_ROWS, Batch, DataInfo, Program, Shard, State, shard_rng
from .sampling import Order, shard_bounds, shard_shares


@dataclass(frozen=True)
class LocalShard:
    """A shard over arrays in memory; the `Shard` protocol.

    Attributes:
        index, first_row: as in `Shard`.
        columns: its rows alone, name to array.
        info: of all the data.
        validation: its part of the validation rows, or None.
    """

    index: int
    first_row: int
    columns: Mapping[str, np.ndarray]
    info: DataInfo
    validation: LocalShard | None = None

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(next(iter(self.columns.values())))

    @functools.cached_property
    def _order(self) -> Order:
        share = int(shard_shares(self.info.shards, self.info.batch_size)[self.index])
        return Order(self.info.seed, self.index, self.rows, share)

    def batch(self, epoch: int, step: int) -> Batch:
        """Return its rows of a global batch, drawn without replacement within an epoch."""
        return self._rows(self._order.batch(epoch, step))

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Batch]:
        """Give all of its rows in order, so many at a time."""
        for start in range(0, self.rows, rows):
            yield self._rows(slice(start, start + rows))

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers keyed by the seed, the shard's index and a purpose."""
        return shard_rng(self.info.seed, self.index, *purpose)

    def _rows(self, which: np.ndarray | slice) -> Batch:
        xp = array_namespace()
        return {name: xp.asarray(column[which]) for name, column in self.columns.items()}


def make_info(
    columns: Mapping[str, np.ndarray],
    validation: Mapping[str, np.ndarray] | None = None,
    shards: int = 8,
    batch_size: int = 1024,
    seed: int = 0,
    dtype: str = "float32",
) -> DataInfo:
    """Describe arrays as the data of a training.

    Args:
        columns: name to array of shape (rows, ...): "x", "y" and "weight", or others.
        validation: the same columns of the validation rows.
        shards, batch_size, seed, dtype: as in `DataInfo`.
    """
    width = columns["x"].shape[1] if "x" in columns and columns["x"].ndim == 2 else 0
    target = columns.get("y")
    ends = None
    if target is not None and len(target) and target.ndim == 1:
        ends = float(target.min()), float(target.max())
    return DataInfo(
        rows=len(next(iter(columns.values()))),
        validation_rows=len(next(iter(validation.values()))) if validation else 0,
        shards=shards,
        batch_size=batch_size,
        columns={name: (array.shape[1:], str(array.dtype)) for name, array in columns.items()},
        names=tuple(f"x{i}" for i in range(width)),
        target_range=ends,
        seed=seed,
        dtype=dtype,
    )


def local_shards(
    columns: Mapping[str, np.ndarray], info: DataInfo, validation: Mapping[str, np.ndarray] | None = None
) -> list[LocalShard]:
    """Cut arrays into the shards of a training.

    Args:
        columns: name to array of shape (info.rows, ...).
        info: says how many shards.
        validation: the same columns of the validation rows, cut into as many parts.

    Returns:
        ``info.shards`` of them; some have no rows if there are fewer rows than shards.
    """
    shards = []
    bounds = shard_bounds(info.rows, info.shards, info.batch_size)
    held_bounds = shard_bounds(info.validation_rows, info.shards, info.batch_size)
    for index in range(info.shards):
        start, stop = bounds[index : index + 2]
        held_out = None
        if validation:
            low, high = held_bounds[index : index + 2]
            held_out = LocalShard(index, int(low), {n: a[low:high] for n, a in validation.items()}, info)
        rows = {name: array[start:stop] for name, array in columns.items()}
        shards.append(LocalShard(index, int(start), rows, info, held_out))
    return shards


def run_locally(
    program: Program,
    shards: Sequence[Shard],
    info: DataInfo,
    on_step: Callable[[State], None] | None = None,
) -> State:
    """Run a program to its end in this thread, with one BLAS thread.

    Args:
        program: what to run.
        shards: all of them, in order.
        info: of their data.
        on_step: called with each state after the first.

    Returns:
        The last state. Its bytes are those that any gang gets.
    """
    with threadpool_limits(limits=1):
        state = program.start(info)
        while not program.finished(state):
            state = program.update(state, sum_in_order(program.statistics(state, shard) for shard in shards))
            if on_step is not None:
                on_step(state)
        return state


def sum_in_order(statistics: Iterator[Mapping[str, Array]]) -> dict[str, Array]:
    """Add up the shards' statistics over the fixed binary tree, holding log2(shards) of them at a time.

    The tree pairs neighbours: 0+1, 2+3, …, then the pairs, and so on; what has no neighbour goes up alone.

    Example:
        >>> sum_in_order({"n": np.array([float(i)])} for i in range(5))
        {'n': array([10.])}
    """
    waiting: list[tuple[int, dict[str, Array]]] = []
    for part in statistics:
        size, total = 1, dict(part)
        while waiting and waiting[-1][0] == size:
            total = _add(waiting.pop()[1], total)
            size *= 2
        waiting.append((size, total))
    total = waiting.pop()[1]
    while waiting:
        total = _add(waiting.pop()[1], total)
    return total


def _add(left: Mapping[str, Array], right: Mapping[str, Array]) -> dict[str, Array]:
    xp = array_namespace()
    return {name: xp.asarray(xp.asarray(left[name]) + xp.asarray(right[name])) for name in left}
