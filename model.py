"""Model: the handle of what `hw.train` declares; computed, applied to rows, looked at, saved and loaded.

A model is the value of an operator, as a dataset is: nothing is trained before something of it is asked for. What is
computed or loaded predicts in this process too, without a session, for a service.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from .arguments import whole
from .datasets import TableSource, arrow_source, table_source
from .datasets.model_folder import read_model_folder, write_model_folder
from .errors import ColumnNotFoundError, CorruptFileError, ParameterError, TypeMismatchError
from .ops.node import Node, listed
from .ops.objectives.objective import Objective
from .ops.objectives.saved import describe_objective, restore_objective
from .ops.persist import Persist
from .ops.prep import FittedNodes, dump, load_text
from .ops.scan import Scan
from .ops.schema import canonical_table
from .ops.training.features import Features
from .ops.training.model_table import FittedModel, decode_model, digest
from .ops.training.predict import BLOCK_ROWS, Predict
from .ops.transform import Transform
from .preparation import FittedPrep
from .session import Session, session_or_current
from .version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from .pipeline import Dataset

#: a larger model isn't sent along with the plan: workers read it from where it was saved
_SENT_BYTES = 16 << 20


class Model:
    """A model: declared by `hw.train`, or loaded by `hw.load_model`.

    Args:
        objective: what it is trained for.
        features: which columns it reads.
        node: what gives its table: a `Train` node, or a scan of a saved one.
        prep: the fitted preparation that its training rows went through; saved and served with it.

    Attributes:
        objective, features, node, prep: as given; the features without target and weight.
    """

    def __init__(self, objective: Objective, features: Features, node: Node, prep: FittedPrep | None = None):
        self.objective = objective
        self.features = features.inputs()
        self.node = node
        self.prep = prep
        self._table: pa.Table | None = None
        self._fitted_model: FittedModel | None = None
        self._served: _Served | None = None
        self._lock = threading.Lock()

    # -- predictions -------------------------------------------------------------------------------------

    def predict(
        self,
        dataset: Dataset,
        *,
        names: Mapping[str, str] | None = None,
        nulls: Literal["error", "null"] = "error",
        batch_rows: int = BLOCK_ROWS,
    ) -> Dataset:
        """Append predictions to rows, lazily; what ``dataset.predict(model)`` calls.

        Args:
            dataset: rows with the columns that the model was trained on, prepared as those were.
            names: predicted column to the name it shall have, as ``{"prediction": "expected_fare"}``.
            nulls: what to do with rows that lack a feature (null or NaN): "error", or "null" for null predictions.
            batch_rows: rows computed at once. A row's prediction is the same wherever it stands; another
                ``batch_rows`` may change its last bits.

        Returns:
            A dataset with all columns, and the predicted ones last.

        Raises:
            ColumnNotFoundError, TypeMismatchError: a feature isn't there, or isn't a number.
            ParameterError: a predicted column has the name of one that is there.
        """
        node = getattr(dataset, "node", None)
        if not isinstance(node, Node):
            raise TypeMismatchError(f"predict() takes a Dataset, not {type(dataset).__name__}.")
        step = self._step(names, nulls, batch_rows)
        try:
            return type(dataset)(Transform(node, self.node, step))  # type: ignore[arg-type]  # frozen
        except (ColumnNotFoundError, TypeMismatchError) as error:
            if self.prep is None:
                raise
            hint = "The model was trained on prepared rows: write model.predict(model.prep.transform(rows))."
            raise type(error)(f"{error} {hint}") from error

    def predict_batch(
        self,
        rows: Mapping[str, Any] | pa.Table | pd.DataFrame,
        *,
        names: Mapping[str, str] | None = None,
        nulls: Literal["error", "null"] = "error",
    ) -> pa.Table:
        """Predict a few rows now, in this process; the bits are those of `predict`.

        For services: the model has to be computed or loaded, no session is needed, and threads may call it at once.

        Args:
            rows: a table, a DataFrame, or a dict of column to values (of one row: to its value). If the model has a
                preparation, rows as they are before it.
            names, nulls: as in `predict`.

        Returns:
            The rows, prepared, with the predicted columns last.

        Raises:
            ParameterError: the model isn't computed.
            HeadwaterError: as in `predict`.
        """
        if self._table is None:
            raise ParameterError(
                "predict_batch() needs a computed model: write model = model.compute(session), or load one."
            )
        if self._served is None:
            self._served = _Served.of(self)
        return self._served.predict(_batch(rows, self.features), self._step(names, nulls, BLOCK_ROWS))

    # -- what it is --------------------------------------------------------------------------------------

    def compute(self, session: Session | None = None) -> Model:
        """Train now, and return the model with its values, so that nothing trains it again.

        Its parameters are then in this process, and travel with the plans that use them. For large ones `persist`,
        which keeps them on the workers, or `save` and `hw.load_model` are better.
        """
        return self._copy(*self._values(session))

    def params(self, session: Session | None = None) -> Any:
        """Train if need be, and return the parameters: nested dicts, lists and tuples of read-only arrays."""
        return self._fitted(session).params

    def history(self, session: Session | None = None) -> pa.Table:
        """Train if need be, and return the metrics of each step or epoch."""
        return self._fitted(session).history

    def about(self, session: Session | None = None) -> dict[str, Any]:
        """Train if need be, and return what is known of the training, as its number of steps."""
        return dict(self._fitted(session).about)

    def digest(self, session: Session | None = None) -> str:
        """Train if need be, and return the SHA-256 of parameters and optimizer state: equal for equal bits."""
        return digest(self._fitted(session))

    def persist(self, level: Literal["disk", "memory"] = "disk", replicas: int = 1) -> Model:
        """Return the model as one that is kept on the nodes once it was trained, as `Dataset.persist` does."""
        node = self.node.input if isinstance(self.node, Persist) else self.node
        return Model(self.objective, self.features, Persist(node, level, replicas), self.prep)

    def unpersist(self, session: Session | None = None) -> int:
        """Let go of what `persist` kept, and return the bytes set free."""
        if not isinstance(self.node, Persist):
            raise ParameterError("unpersist() is for a model that persist() returned.")
        return session_or_current(session).unpersist(self.node)

    def save(
        self,
        url: str,
        session: Session | None = None,
        *,
        prep: FittedPrep | None = None,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Train if need be, and save the model as a folder: readable JSON, and the arrays as an Arrow file.

        The folder is complete or not there. Headwater's own objectives are saved by name and arguments; a user's
        own is pickled, so that loading it runs code.

        Args:
            url: a folder; a local path or any fsspec URL.
            session: where to train; None takes the current one.
            prep: the preparation to save with it; None takes the model's own.
            overwrite: replace a model that is there.
            storage_options: for the file system, as credentials.

        Raises:
            SinkExistsError: there is a model already.
            SerializationError: the objective or the preparation can't be saved.
        """
        model = self if prep is None else Model._of(self, self.node, prep, self._table)
        table, prep = model._values(session)
        fitted = decode_model(table)
        record, pickled = describe_objective(self.objective)
        parts = {} if pickled is None else {"objective": pickled}
        if prep is not None:
            parts["prep"] = dump(prep._fitted.steps, _tables(prep)).encode()
        about = {
            "headwater": __version__,
            "objective": record,
            "features": {**asdict(self.features)},
            "about": fitted.about,
            "digest": digest(fitted),
        }
        write_model_folder(url, about, table, parts, overwrite, storage_options)

    def __repr__(self) -> str:
        columns = listed(list(self.features.required), most=8)
        prepared = f", behind {self.prep!r}" if self.prep is not None else ""
        state = "computed" if self._table is not None else f"from {type(self.node).__name__}"
        return f"Model({self.objective!r} of [{columns}]{prepared}; {state})"

    # -- insides -----------------------------------------------------------------------------------------

    @classmethod
    def _of(cls, other: Model, node: Node, prep: FittedPrep | None, table: pa.Table | None) -> Model:
        model = cls(other.objective, other.features, node, prep)
        model._table = table
        return model

    def _copy(self, table: pa.Table, prep: FittedPrep | None) -> Model:
        node = self.node if isinstance(self.node, Scan) else Scan(table_source(table))
        return Model._of(self, node, prep, table)

    def _step(self, names: Mapping[str, str] | None, nulls: Any, batch_rows: int) -> Predict:
        if names is not None and not isinstance(names, Mapping):
            raise TypeMismatchError(f"predict(names={names!r}): give a dict, as {{'prediction': 'fare'}}.")
        renamed = tuple(sorted((names or {}).items()))
        rows = whole(batch_rows, "predict", "batch_rows", 1)
        return Predict(self.objective, self.features, renamed, nulls, rows)

    def _values(self, session: Session | None) -> tuple[pa.Table, FittedPrep | None]:
        """The model's table, and its preparation with its values; what isn't known is computed in one run."""
        nodes: dict[str, Node] = {} if self._table is not None else {"model": self.node}
        if self.prep is not None and any(_table_of(state) is None for state in self.prep._fitted.states):
            nodes |= {f"state{i}": node for i, node in enumerate(self.prep._fitted.states)}
        if nodes:
            with session_or_current(session).run(nodes, "model") as result:
                tables = {name: result.table(name) for name in nodes}
            if "model" in tables:
                self._table = tables.pop("model")
            if tables and self.prep is not None:
                states = tuple(Scan(table_source(table)) for table in tables.values())
                return self._table, FittedPrep(FittedNodes(self.prep._fitted.steps, states))
        return self._table, self.prep

    def _fitted(self, session: Session | None) -> FittedModel:
        with self._lock:
            if self._fitted_model is None:
                if self._table is None:
                    with session_or_current(session).run({"model": self.node}, "model") as result:
                        self._table = result.table("model")
                self._fitted_model = decode_model(self._table)
            return self._fitted_model


class _Served:
    """A model made ready to predict in this process."""

    def __init__(self, prep: list[tuple[Any, Any]], params: Any):
        self._prep = prep
        self._params = params

    @classmethod
    def of(cls, model: Model) -> _Served:
        steps: list[tuple[Any, Any]] = []
        if model.prep is not None:
            tables = _tables(model.prep)
            steps = [(step, step.prepare(state)) for step, state in zip(model.prep._fitted.steps, tables)]
        return cls(steps, model._step(None, "error", BLOCK_ROWS).prepare(model._table))

    def predict(self, rows: pa.Table, step: Predict) -> pa.Table:
        for prepare, prepared in self._prep:
            rows = prepare.apply(rows, prepared)
        return step.apply(rows, self._params)


def load_model(
    url: str,
    *,
    trusted: bool = False,
    objective: Objective | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Model:
    """Load a model that `Model.save` wrote.

    Args:
        url: the folder; a local path or any fsspec URL. Workers read a model of more than 16 MiB from there
            themselves, so that they have to see it too.
        trusted: whether code may be run that was saved with the model: a user's own objective.
        objective: the objective itself, in place of what was saved.
        storage_options: for the file system, as credentials.

    Returns:
        The model, computed; ``model.prep`` is the preparation that was saved with it.

    Raises:
        SourceNotFoundError: there is no model.
        CorruptFileError: it isn't whole, was changed, or was written by a later version.
        ParameterError: it holds a pickled objective, and isn't trusted.
    """
    about, table, parts, arrays = read_model_folder(url, storage_options)
    try:
        record, features = about["objective"], _features(about["features"])
        name = record["name"]
        decode_model(table)
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"{url}: model.json lacks something ({type(error).__name__}: {error})."
        ) from error
    if objective is None:
        if "objective" in parts and not trusted:
            raise ParameterError(
                f"{url}: the model's objective {name} isn't one of Headwater's own, and loading it runs code from that "
                "folder. Write load_model(url, trusted=True) if you know who wrote it, or give objective=…"
            )
        objective = restore_objective(record, parts.get("objective"))
    prep = None
    if "prep" in parts:
        steps, states = load_text(parts["prep"].decode())
        prep = FittedPrep(FittedNodes(steps, tuple(Scan(table_source(state)) for state in states)))
    large = table.nbytes > _SENT_BYTES
    source = arrow_source(arrays, storage_options=storage_options) if large else table_source(table)
    model = Model(objective, features, Scan(source), prep)
    model._table = table
    return model


def _features(record: Mapping[str, Any]) -> Features:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
    return Features(**values)


def _tables(prep: FittedPrep) -> tuple[pa.Table, ...]:
    """The states of a preparation that has its values."""
    tables = tuple(table for state in prep._fitted.states if (table := _table_of(state)) is not None)
    if len(tables) < len(prep._fitted.states):
        raise ParameterError(
            "predict_batch() needs the values of the model's preparation: write model = model.compute(session)."
        )
    return tables


def _table_of(node: Node) -> pa.Table | None:
    """The table that a node scans, if it is one in memory."""
    return node.source.table if isinstance(node, Scan) and isinstance(node.source, TableSource) else None


def _batch(rows: Any, features: Features) -> pa.Table:
    """Rows of any kind as a table of canonical types."""
    if isinstance(rows, pa.Table | pa.RecordBatch):
        table = pa.table(rows) if isinstance(rows, pa.RecordBatch) else rows
    elif isinstance(rows, Mapping):
        single = not any(_is_column(value) for value in rows.values())
        table = pa.table({name: _column([value] if single else value) for name, value in rows.items()})
    elif hasattr(rows, "to_numpy") and hasattr(rows, "columns"):
        table = pa.Table.from_pandas(rows, preserve_index=False)
    else:
        raise TypeMismatchError(
            f"predict_batch() takes a table, a DataFrame or a dict of columns, not {type(rows).__name__}."
        )
    table = canonical_table(table)
    for i, field in enumerate(table.schema):
        if pa.types.is_null(field.type) and field.name in features.required:
            table = table.set_column(i, field.name, table.column(i).cast(pa.float64()))
    return table


def _is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes)


def _column(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return values
