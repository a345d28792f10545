"""Program: an iterative algorithm as pure functions of a state and of sums over shards; and what it runs on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ...arguments import whole
from ...errors import ParameterError
from ..backend import Array
from .sampling import generator, steps_per_epoch

#: arrays by name, all with as many rows: "x" (rows, d), "y" (rows,) and "weight" (rows,), or declared columns
Batch = Mapping[str, Array]
#: nested dicts, lists and tuples of arrays
Tree = Any
#: what a program goes by from step to step: arrays, numbers, texts and dicts of them; "step" counts finished steps
State = dict[str, Any]

#: rows in each batch that `Shard.blocks` gives if not told otherwise, the last excepted
BLOCK_ROWS = 8192


def shard_rng(seed: int, index: int, *purpose: int) -> np.random.Generator:
    """Return the random numbers that `Shard.rng` gives, wherever the shard lies.

    Args:
        seed: the pipeline's.
        index: the shard's.
        purpose: what they are for.
    """
    return generator(seed, "shard", index, *purpose)


@runtime_checkable
class Shard(Protocol):
    """A fixed part of the training rows, by row number.

    Attributes:
        index: its number, from 0.
        rows: how many training rows it has; may be 0.
        first_row: number of its first row among all training rows.
        validation: its part of the validation rows, or None if there are none at all.
    """

    @property
    def index(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def first_row(self) -> int: ...
    @property
    def validation(self) -> Shard | None: ...

    def batch(self, epoch: int, step: int) -> Batch:
        """Return its part of a global batch, which may have no rows; ``step`` counts within the epoch."""
        ...

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Batch]:
        """Give all of its rows in order, so many at a time: a multiple of `BLOCK_ROWS`."""
        ...

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers keyed by the seed, the shard's index and a purpose."""
        ...


@dataclass(frozen=True)
class DataInfo:
    """What a program knows of its data before it starts; the same on every member.

    Attributes:
        rows, validation_rows: of all shards together.
        shards: how many there are.
        batch_size: rows of a global batch.
        columns: of a batch, name to the shape of a row and the dtype, as
            ``{"x": ((14,), "float32"), "y": ((), "float32")}``.
        names: of the features, one for each column of x.
        target_range: the smallest and largest target of the training rows; None without a target.
        seed: the pipeline's.
        dtype: of parameters, "float32" or "float64".

    Example:
        >>> info = DataInfo(rows=10, batch_size=4, columns={"x": ((2,), "float32")})
        >>> info.steps_per_epoch, info.width
        (3, 2)
    """

    rows: int
    validation_rows: int = 0
    shards: int = 8
    batch_size: int = 1024
    columns: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    target_range: tuple[float, float] | None = None
    seed: int = 0
    dtype: str = "float32"

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; the last may be smaller."""
        return steps_per_epoch(self.rows, self.batch_size)

    @property
    def width(self) -> int:
        """The number of features: of columns of x."""
        if "x" not in self.columns:
            raise ParameterError(
                f"the training rows have {', '.join(map(repr, self.columns)) or 'no columns'}, and no 'x'. "
                "Use an objective that declares these columns, or give features=[...]."
            )
        shape = self.columns["x"][0]
        return int(np.prod(shape, dtype=np.int64))

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers keyed by the seed and a purpose, the same on every member."""
        return generator(self.seed, "training", *purpose)


class Program(Protocol):
    """An iterative algorithm: start a state, sum statistics over shards, update the state.

    All functions are pure: same arguments, same bytes, on any member. A `State` that went in may be used up.
    """

    def start(self, info: DataInfo) -> State:
        """Return the first state, with "step" 0."""
        ...

    def statistics(self, state: State, shard: Shard) -> Mapping[str, Array]:
        """Return what a shard adds to the sums of the next step.

        Returns:
            Arrays of float32 or float64; names, shapes and dtypes are the same for every shard, and a
            shard without rows gives zeros.
        """
        ...

    def update(self, state: State, sums: Mapping[str, Array]) -> State:
        """Return the next state, given the sums of the statistics over all shards."""
        ...

    def finished(self, state: State) -> bool:
        """Say whether no further step is needed."""
        ...

    def metrics(self, state: State) -> dict[str, float]:
        """Return figures of the last step, such as "loss"; no times, the same on every run."""
        ...

    def params(self, state: State) -> Tree:
        """Return the fitted parameters."""
        ...

    def progress(self, state: State) -> float:
        """Return how much is done, from 0 to 1."""
        ...


@dataclass(frozen=True)
class EarlyStopping:
    """When to stop before the last epoch: the validation loss hasn't fallen for some epochs.

    Attributes:
        patience: epochs in a row without improvement after which it stops.
        min_delta: by how much the loss must fall below the best one to count as improved.
        restore_best: return the parameters of the best epoch, not of the last.
    """

    patience: int = 5
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise ParameterError(
                f"early stopping with patience={self.patience}, min_delta={self.min_delta}: patience is at "
                "least 1 epoch, and min_delta isn't negative."
            )


@dataclass(frozen=True)
class Settings:
    """What a training was given besides its data.

    Attributes:
        optimizer: of `headwater.ops.optim`, or a solver such as L-BFGS; None takes the objective's default.
        epochs: passes over the training rows; None if `steps` is given.
        steps: global batches; None if `epochs` is given.
        batch_size: rows of a global batch.
        accumulate: slices in which a shard's part of a batch is computed, one after another, to save memory.
        seed: of everything that is drawn.
        dtype: of parameters, "float32" or "float64".
        on_nan: what to do when a loss isn't finite: "raise"; "skip" the step; or "stop" with the last good
            parameters.
        early_stopping: or None.
    """

    optimizer: Any = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 1024
    accumulate: int = 1
    seed: int = 0
    dtype: str = "float32"
    on_nan: Literal["raise", "skip", "stop"] = "raise"
    early_stopping: EarlyStopping | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "accumulate"):
            value = getattr(self, name)
            if value is not None or name not in ("epochs", "steps"):
                object.__setattr__(self, name, whole(value, "train", name, 1))
        object.__setattr__(self, "seed", whole(self.seed, "train", "seed"))
        if self.epochs is not None and self.steps is not None:
            raise ParameterError(
                f"epochs={self.epochs} and steps={self.steps} both say when training ends. Give one of them."
            )
        if self.dtype not in ("float32", "float64"):
            raise ParameterError(f"dtype={self.dtype!r}: parameters are 'float32' or 'float64'.")
        if self.on_nan not in ("raise", "skip", "stop"):
            raise ParameterError(f"on_nan={self.on_nan!r}: it is 'raise', 'skip' or 'stop'.")

    def parameters(self) -> Any:
        """What decides the model, for its lineage key."""
        optimizer = None
        if self.optimizer is not None:
            optimizer = (type(self.optimizer).__name__, self.optimizer.name, self.optimizer.parameters())
        stopping = self.early_stopping
        return (
            optimizer,
            self.epochs,
            self.steps,
            self.batch_size,
            self.accumulate,
            self.seed,
            self.dtype,
            self.on_nan,
            stopping and (stopping.patience, stopping.min_delta, stopping.restore_best),
        )
