"""hw.train: a model as the value of an operator, declared like any dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from .arguments import column_names
from .errors import ParameterError, TypeMismatchError
from .model import Model
from .ops.objectives.objective import Objective
from .ops.optim.solvers import Solver
from .ops.training.features import Features
from .ops.training.program import EarlyStopping, Settings
from .ops.training.train import AllReduce, Train
from .pipeline import Dataset
from .preparation import FittedPrep

#: passes over the rows where neither epochs nor steps are given
EPOCHS = 10


def train(
    dataset: Dataset,
    *,
    objective: Objective,
    target: str | None = None,
    features: str | Sequence[str] | None = None,
    weight: str | None = None,
    optimizer: Any = None,
    strategy: AllReduce | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 1024,
    accumulate: int = 1,
    validation: Dataset | None = None,
    early_stopping: EarlyStopping | None = None,
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    on_nan: Literal["raise", "skip", "stop"] = "raise",
    callbacks: Sequence[Callable[[dict[str, float]], Any]] = (),
    prep: FittedPrep | None = None,
) -> Model:
    """Declare a model that is trained on all rows of a dataset, by all workers together.

    Nothing runs until the model, or what is predicted with it, is asked for. Its parameters have the same bits
    whatever the number of workers, and whatever dies, hangs, joins or leaves meanwhile. Nothing is checkpointed:
    what a dead worker knew, another one knows too, and its rows are remade from lineage.

    Args:
        dataset: the training rows.
        objective: what is minimized; see ``hw.objectives``.
        target: column to be predicted, if the objective learns from one.
        features: columns to predict from: numbers, booleans and vectors (lists of one length); None takes all
            columns that have no other role.
        weight: column that says how much each row counts.
        optimizer: of ``hw.optim``; None takes the objective's own algorithm, or Adam.
        strategy: how workers share the work; None is ``hw.AllReduce()``.
        epochs: passes over the rows; 10 if neither ``epochs`` nor ``steps`` is given. Algorithms that stop by
            themselves (k-means, L-BFGS, …) take neither.
        steps: batches instead of epochs.
        batch_size: rows of a batch, of all workers together.
        accumulate: slices in which a shard's part of a batch is computed, one after another, to save memory.
        validation: rows whose loss is computed after each epoch.
        early_stopping: when to stop by the validation loss.
        seed: of shuffling, first parameters, dropout.
        dtype: of features and parameters.
        on_nan: what to do when a loss is not finite: "raise", "skip" the step, or "stop" with what there is.
        callbacks: called with ``{"step": …, "loss": …}`` after each step, where the gang is coordinated. A step
            that is repeated after a failure may be told twice.
        prep: the fitted preparation that the rows went through, to be saved and served with the model.

    Returns:
        The model: ``dataset.predict(model)``, ``model.compute()``, ``model.save(url)``.

    Raises:
        ColumnNotFoundError: a column that isn't there.
        TypeMismatchError: a column that can't be a feature or target, or an argument of another kind.
        ParameterError: a number out of range, or arguments that contradict each other.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"x": [0.0, 1.0, 2.0, 3.0], "y": [1.0, 3.0, 5.0, 7.0]})
        >>> model = hw.train(rows, target="y", objective=hw.objectives.LinearRegression(), optimizer=hw.optim.lbfgs())
        >>> [round(p, 3) for p in rows.predict(model).compute(hw.Session("inline"))["prediction"].to_pylist()]
        [1.0, 3.0, 5.0, 7.0]
    """
    _check_kinds(dataset, objective, validation, strategy, early_stopping, prep)
    if objective.needs_target and target is None:
        raise ParameterError(
            f"{objective.label} learns from a target: write target='…', one of {dataset.columns}."
        )
    if not objective.needs_target and target is not None:
        raise ParameterError(f"{objective.label} has no target; leave target={target!r} out.")
    if early_stopping is not None and validation is None:
        raise ParameterError("early_stopping goes by the loss of validation rows: give validation=… too.")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        hint = f" Write callbacks=[{getattr(callbacks, '__name__', 'f')}]." if callable(callbacks) else ""
        raise TypeMismatchError(
            f"callbacks={callbacks!r}: give a list of functions of a dict of metrics.{hint}"
        )
    _check_optimizer(optimizer)
    names = None if features is None else column_names(features, "train(features=...)")
    chosen = Features(names, target, weight, objective.columns, dtype).resolved(dataset.schema)
    if optimizer is not None and epochs is None and steps is None and hasattr(optimizer, "update"):
        epochs = EPOCHS
    settings = Settings(optimizer, epochs, steps, batch_size, accumulate, seed, dtype, on_nan, early_stopping)
    program = objective.program(settings)  # what can't go together is told now
    if strategy is not None and strategy.sharded_state and not getattr(program, "elementwise", False):
        raise ParameterError(
            f"AllReduce(sharded_state=True) needs an optimizer that treats each parameter by itself, and "
            f"{settings.optimizer or objective.label} doesn't. Take adam, adamw, … without clip_by_global_norm, or "
            "leave sharded_state out."
        )
    rows = dataset.select(*chosen.required).node
    held_out = None
    if validation is not None:
        chosen.check(validation.schema, "validation rows of train")
        held_out = validation.select(*chosen.required).node
    node = Train(rows, held_out, objective, settings, chosen, strategy or AllReduce(), tuple(callbacks))
    return Model(objective, chosen, node, prep)


def _check_optimizer(optimizer: Any) -> None:
    known = isinstance(optimizer, Solver) or (hasattr(optimizer, "init") and hasattr(optimizer, "update"))
    if optimizer is not None and not known:
        name = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "adam")
        raise TypeMismatchError(
            f"train(optimizer={optimizer!r}): give one of hw.optim. Write optimizer=hw.optim.{name}(…)."
        )


def _check_kinds(
    dataset: Any, objective: Any, validation: Any, strategy: Any, early_stopping: Any, prep: Any
) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeMismatchError(f"train() takes a Dataset, not {type(dataset).__name__}.")
    if validation is not None and not isinstance(validation, Dataset):
        raise TypeMismatchError(f"train(validation=…) takes a Dataset, not {type(validation).__name__}.")
    if not isinstance(objective, Objective):
        hint = " Call it: objective=hw.objectives.…()." if isinstance(objective, type) else ""
        raise TypeMismatchError(
            f"train(objective={objective!r}): give one of hw.objectives, as hw.objectives.LogisticRegression().{hint}"
        )
    for name, value, kind in (
        ("strategy", strategy, AllReduce),
        ("early_stopping", early_stopping, EarlyStopping),
        ("prep", prep, FittedPrep),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeMismatchError(f"train({name}={value!r}): give a {kind.__name__}.")
