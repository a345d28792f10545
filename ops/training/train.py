"""Train: an operator whose one partition is a model, made by a gang of workers from all rows of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ...errors import ParameterError, PlanError
from ...lineage.graph import Dependency
from ..kernel import Broadcast, Context, Kernel, Stream
from ..node import Node
from ..objectives.objective import Objective
from .features import Features
from .model_table import MODEL_SCHEMA
from .program import Program, Settings

#: shards where nobody says how many
SHARDS = 8
#: most shards: the tree on them is walked in every step
MOST_SHARDS = 4096


@dataclass(frozen=True)
class AllReduce:
    """Data-parallel training: every member has all parameters, and gradients are summed in a fixed tree.

    The number of shards is part of what is computed: another one gives other bits, the number of workers never does.

    Args:
        shards: into how many parts the rows are cut; at most as many workers take part.
        workers: most workers that take part; None is all there are.
        sharded_state: each member keeps the optimizer's state of its own part of the parameters, and a copy of its
            neighbour's (reduce-scatter, update of the own part, all-gather), instead of all of it. The same bits.
        cache: share of each worker's shards, 0 to 1, that is kept as arrays; the rest is decoded again at each pass.

    Raises:
        ParameterError: a number out of range.

    Example:
        >>> AllReduce(shards=4)
        AllReduce(shards=4, workers=None, sharded_state=False, cache=1.0)

    Source: ring all-reduce in its reduce-scatter and all-gather form (Thakur, Rabenseifner, Gropp 2005); sharded
    state as in ZeRO stage 1 (Rajbhandari et al. 2020).
    """

    shards: int = SHARDS
    workers: int | None = None
    sharded_state: bool = False
    cache: float = 1.0

    def __post_init__(self) -> None:
        if not _is_whole(self.shards) or not 1 <= self.shards <= MOST_SHARDS:
            raise ParameterError(
                f"AllReduce(shards={self.shards!r}): give a whole number, 1 to {MOST_SHARDS}."
            )
        if self.workers is not None and (not _is_whole(self.workers) or self.workers < 1):
            raise ParameterError(
                f"AllReduce(workers={self.workers!r}): give a whole number, 1 or more, or None."
            )
        if not isinstance(self.cache, int | float) or not 0 <= self.cache <= 1:
            raise ParameterError(f"AllReduce(cache={self.cache!r}): give a share, 0 to 1.")


@dataclass(frozen=True)
class Train(Node):
    """Fit a model to all rows; broadcast in the rows, as the gang reads what each of its members needs.

    Attributes:
        input: the training rows.
        validation: rows that tell when to stop; None without.
        objective: what is minimized.
        settings: how.
        features: which columns become which arrays.
        strategy: how workers share the work.
        callbacks: called with each step's metrics where the gang is coordinated; no part of the content.
    """

    input: Node
    validation: Node | None
    objective: Objective
    settings: Settings
    features: Features
    strategy: AllReduce
    callbacks: tuple[Callable[[dict[str, float]], Any], ...] = ()

    def __post_init__(self) -> None:
        self.check()

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,) if self.validation is None else (self.input, self.validation)

    def with_inputs(self, inputs: Sequence[Node]) -> Train:
        validation = inputs[1] if self.validation is not None else None
        return Train(
            inputs[0], validation, self.objective, self.settings, self.features, self.strategy, self.callbacks
        )

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.BROADCAST,) * len(self.inputs)

    def derive_schema(self) -> pa.Schema:
        for node in self.inputs:
            self.features.check(node.schema)
        return MODEL_SCHEMA

    def parameters(self) -> Any:
        return (
            type(self.objective).__name__,
            self.objective.parameters(),
            self.settings,
            self.features,
            self.strategy.shards,
            self.validation is not None,
        )

    def describe(self) -> str:
        return f"{self.objective.label}, {self.strategy.shards} shards"


@dataclass(frozen=True)
class TrainKernel(Kernel):
    """What the gang needs to know; it is run by `headwater.runtime.training`, not as other kernels are."""

    program: Program
    objective: Objective
    settings: Settings
    features: Features
    strategy: AllReduce
    callbacks: tuple[Callable[[dict[str, float]], Any], ...] = ()

    @classmethod
    def of(cls, node: Train) -> TrainKernel:
        """Make the kernel of a node."""
        program = node.objective.program(node.settings)
        return cls(program, node.objective, node.settings, node.features, node.strategy, node.callbacks)

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        raise PlanError("a training stage is run by a gang, not as a kernel")

    @property
    def label(self) -> str:
        return f"train {self.objective.label}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
