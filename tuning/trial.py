"""Trial: one setting of hyperparameters as outputs of a pipeline, its score and its losses; and what came of it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ..errors import ParameterError, TypeMismatchError, did_you_mean
from ..model import Model
from ..ops.expressions import col
from ..ops.node import Node
from ..ops.persist import Persist
from ..ops.project import Project
from ..ops.scan import Scan
from ..ops.training.train import AllReduce, Train
from ..ops.transform import Transform
from ..pipeline import Dataset


@dataclass(frozen=True)
class Outcome:
    """What came of a trial in one rung.

    Attributes:
        score: None if it failed.
        loss: of the validation rows, if there are any, else of the last steps; None if it isn't known.
        error: why it failed.
    """

    score: float | None
    loss: float | None
    error: str | None = None


@dataclass(frozen=True)
class Trial:
    """A trial in one rung, declared.

    Attributes:
        number: of the trial.
        params: its values.
        budget: what it gets in this rung.
        model: kept on the nodes once it is trained.
        scored: the one row with its score; None if the loss is the score.
        raises: whether a loss that isn't finite is a failure, and not what the builder asked for.
        kept: what is kept on the nodes for it: the model, and prepared rows that other trials share.
    """

    number: int
    params: Mapping[str, Any]
    budget: int | None
    model: Model
    scored: Dataset | None
    raises: bool
    kept: tuple[Persist, ...]

    def outputs(self) -> dict[str, Dataset]:
        """What a run has to compute of it, by name."""
        found = {f"losses {self.number}": losses(self.model)}
        return found if self.scored is None else {**found, f"score {self.number}": self.scored}

    def outcome(self, tables: Callable[[str], pa.Table]) -> Outcome:
        """Read what a run computed.

        Args:
            tables: gives an output by name.

        Raises:
            ParameterError: the score has not one row.
        """
        loss, diverged = read_losses(tables(f"losses {self.number}"))
        if diverged is not None and self.raises:
            return Outcome(None, None, diverged)
        if self.scored is None:
            return Outcome(loss, loss, None if loss is not None else "its history has no loss")
        score = one_number(tables(f"score {self.number}"))
        if score is None or not math.isfinite(score):
            return Outcome(None, loss, f"the score is {'null' if score is None else score}")
        return Outcome(score, loss)

    def __str__(self) -> str:
        given = dict(self.params)
        return f"trial {self.number} ({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def check_builder(build: Any, names: Sequence[str], budget: str | None) -> None:
    """Raise if a builder can't be called with these parameters.

    Raises:
        TypeMismatchError: it isn't a function.
        ParameterError: it lacks a parameter, or needs one that isn't there.
    """
    if not callable(build):
        raise TypeMismatchError(
            f"search({build!r}, …): give a function of the parameters that returns a model, as "
            "lambda lr: hw.train(rows, target='y', objective=…, optimizer=hw.optim.adam(lr))."
        )
    parameters = inspect.signature(build).parameters.values()
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise ParameterError("search(): the builder is called with parameters by name; leave the / out.")
    taken = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given = [*names, *([] if budget is None else [budget])]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in given:
            if name not in taken:
                role = "says the budget of a trial" if name == budget else "is in the space"
                raise ParameterError(
                    f"search(): {name!r} {role}, and the builder has no such parameter. {did_you_mean(name, taken)}"
                )
    needed = [p.name for p in parameters if p.default is p.empty and p.name in taken]
    if missing := [name for name in needed if name not in given]:
        raise ParameterError(
            f"search(): the builder needs {missing[0]!r}, and the space doesn't have it. "
            f"{did_you_mean(missing[0], given)}"
        )


def declare(
    number: int,
    params: Mapping[str, Any],
    budget: tuple[str, int] | None,
    build: Callable[..., Model],
    score: Callable[[Model], Dataset] | None,
    workers: int | None,
) -> Trial:
    """Declare a trial so that it fits beside others in one run.

    What it shares with others is kept: the rows that are trained on, and what the score reads that has nothing to do
    with the model.

    Args:
        number: of the trial.
        params: its values.
        budget: name and value of what it gets in this rung.
        build: from the values to a model.
        score: from a model to a dataset with one row and one number.
        workers: most that train it together; None leaves the builder's.
    """
    told = {} if budget is None else {budget[0]: budget[1]}
    declared, node = _trained(build(**params, **told), number)
    keeper = _Keeper()
    own = keeper.keep(_fitted_in(node, workers, keeper))
    model = Model(declared.objective, declared.features, own, declared.prep)
    scored = None if score is None else _scored(score(model))
    if scored is not None:
        scored = Dataset(keep_apart(scored.node, own, keeper))
    raises = node.settings.on_nan == "raise"
    given = None if budget is None else budget[1]
    return Trial(number, params, given, model, scored, raises, tuple(keeper.kept))


class _Keeper:
    """Puts a Persist on plans, and knows which."""

    def __init__(self) -> None:
        self.kept: list[Persist] = []

    def keep(self, node: Node) -> Node:
        """Persist a plan, unless that would keep what is kept already, or lies in this process."""
        below = node
        while isinstance(below, Project):
            below = below.input
        given = isinstance(below, Scan) and getattr(below.source, "kind", "") == "table"
        if given or isinstance(below, Persist):
            return node
        self.kept.append(Persist(node))
        return self.kept[-1]


def keep_apart(node: Node, model: Node, keeper: _Keeper) -> Node:
    """Persist what a plan reads that doesn't depend on a model.

    Args:
        node: the plan.
        model: the model's node.
        keeper: persists.

    Returns:
        The plan with a Persist on top of each largest part without the model.
    """
    depends = {model.key}
    for part in node.walk():
        if any(below.key in depends for below in part.inputs):
            depends.add(part.key)
    made: dict[str, Node] = {}

    def rebuilt(part: Node) -> Node:
        if part.key not in depends:
            return keeper.keep(part)
        if part.key == model.key:
            return part
        if part.key not in made:
            made[part.key] = part.with_inputs([rebuilt(below) for below in part.inputs])
        return made[part.key]

    return rebuilt(node)


def losses(model: Model) -> Dataset:
    """The rows of a model's table that tell how its training went."""
    rows = Dataset(model.node).filter((col("part") == "history") | (col("part") == "about"))
    return rows.select("part", "data", "text")


def read_losses(rows: pa.Table) -> tuple[float | None, str | None]:
    """Return the loss that counts, and why a training ended before its time; None for what isn't known.

    Args:
        rows: of `losses`.
    """
    by_part = {row["part"]: row for row in rows.to_pylist()}
    about = json.loads(by_part["about"]["text"] or "{}")
    history = pa.ipc.open_stream(by_part["history"]["data"]).read_all()
    columns = {name: history.column(name).to_pylist() for name in history.column_names}
    known = [value for name in ("validation_loss", "loss") for value in reversed(columns.get(name, []))]
    loss = next((float(value) for value in known if value is not None and math.isfinite(value)), None)
    last = columns["loss"][-1] if columns.get("loss") else None
    if about.get("end") == "not finite" or (last is not None and not math.isfinite(last)):
        step = about.get("steps")
        return loss, "diverged: loss or gradient isn't finite" + ("" if step is None else f" at step {step}")
    return loss, None


def one_number(table: pa.Table) -> float | None:
    """Return the number in a table of one row and one column.

    Raises:
        ParameterError: it has another number of rows.
    """
    if table.num_rows != 1:
        raise ParameterError(
            f"search(score=…) gave {table.num_rows:,} rows. A score is one number: aggregate, as "
            "valid.predict(model).agg(hw.metrics.auc('y', 'probability'))."
        )
    value = table.column(0)[0].as_py()
    return None if value is None else float(value)


def _trained(model: Any, number: int) -> tuple[Model, Train]:
    if not isinstance(model, Model):
        raise TypeMismatchError(
            f"search(): for trial {number} the builder returned {type(model).__name__}, and not a model. Return "
            "what hw.train(…) gives."
        )
    node = model.node.input if isinstance(model.node, Persist) else model.node
    if not isinstance(node, Train):
        raise TypeMismatchError(
            f"search(): for trial {number} the builder returned a model that is trained already. Return what "
            "hw.train(…) gives."
        )
    return model, node


def _fitted_in(node: Train, workers: int | None, keeper: _Keeper) -> Train:
    """Return a training for a search: rows that are kept, a gang of its own size, and no error if it diverges."""
    strategy = node.strategy
    if workers is not None and isinstance(strategy, AllReduce):
        strategy = replace(strategy, workers=min(workers, strategy.workers or workers))
    settings = replace(node.settings, on_nan="stop") if node.settings.on_nan == "raise" else node.settings
    changed = replace(node, settings=settings, strategy=strategy)
    return changed.with_inputs([keeper.keep(below) for below in node.inputs])


def _scored(dataset: Any) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise TypeMismatchError(
            f"search(score=…) returned {type(dataset).__name__}. Return a dataset of one row and one number, as "
            "valid.predict(model).agg(hw.metrics.auc('y', 'probability')), without computing it."
        )
    fields = list(dataset.schema)
    numbers = pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean
    if len(fields) != 1 or not any(is_number(fields[0].type) for is_number in numbers):
        raise ParameterError(
            f"search(score=…): a score is one column of numbers, and there is {dataset.schema.names}. Give one "
            "aggregation, as valid.predict(model).agg(hw.metrics.auc('y', 'probability'))."
        )
    node = dataset.node
    while isinstance(node, Project):
        node = node.input
    if isinstance(node, Transform):
        raise ParameterError(
            "search(score=…) gives a number for each row. A score is one number: aggregate, as "
            "valid.predict(model).agg(hw.metrics.auc('y', 'probability'))."
        )
    return dataset
