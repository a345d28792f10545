"""Dataset: the lazy, immutable handle a pipeline is declared with.

A handle holds a logical node and nothing else. Every method checks its arguments against the schema
and returns a new handle; `compute`, `to_pandas`, `iter_batches` and their like run the plan on a session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from . import datasets
from .arguments import column_names, flags, known_options, no_attribute, share, whole
from .desugaring import (
    aggregate_node,
    named_expressions,
    row_identity,
    takes_fill,
    widen_keys,
    with_sort_columns,
)
from .errors import ParameterError, TypeMismatchError
from .grouped import GroupedDataset
from .lineage.graph import Dependency
from .ops.distinct import Distinct
from .ops.expressions import Expr, col, count, hash_unit, lit
from .ops.filter import Filter
from .ops.join import Join
from .ops.limit import Limit
from .ops.map_batches import BatchFormat, MapBatches, check_picklable, declared_output, infer_output
from .ops.morsels import rechunk
from .ops.node import Node, listed, plan_text
from .ops.persist import Persist
from .ops.project import Project
from .ops.repartition import Repartition
from .ops.sample import Sample
from .ops.scan import Scan
from .ops.sort import Sort, SortKey
from .ops.union import Union
from .ops.write import Write
from .session import Session, explain, first_rows, session_or_current

if TYPE_CHECKING:
    import pandas as pd

    from .datasets.file_sink import FileSink
    from .model import Model
    from .ops.prep import Chain
    from .preparation import FittedPrep
    from .session import RunResult

Name = str | Expr


class Dataset:
    """A lazy, immutable, ordered collection of rows with an Arrow schema.

    Made by the ``read_*`` and ``from_*`` functions and by its own methods; nothing runs until a result
    is asked for.

    Example:
        >>> import headwater as hw
        >>> rides = hw.from_arrow({"fare": [3.0, -1.0, 8.0], "zone": ["a", "a", "b"]})
        >>> rides.filter(hw.col("fare") > 0).columns
        ['fare', 'zone']
    """

    __slots__ = ("node",)

    def __init__(self, node: Node):
        self.node = node

    # -- what it is --------------------------------------------------------------------------------

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows."""
        return self.node.schema

    @property
    def columns(self) -> list[str]:
        """The column names, in order."""
        return list(self.schema.names)

    def __repr__(self) -> str:
        fields = listed([f"{field.name}: {field.type}" for field in self.schema])
        return f"Dataset[{fields}]\n{plan_text(self.node)}"

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(Dataset, name, () if name[0] == "_" or name == "node" else self.columns)

    def __getitem__(self, key: Any) -> Any:
        raise TypeMismatchError(
            f"a Dataset can't be indexed by {key!r}. Write col('name') for a column in an expression, "
            "select(...) for columns, filter(...) for rows and head(n) for the first of them."
        )

    __iter__ = None  # so that Python doesn't try __getitem__ with 0, 1, …

    def _then(self, node: type[Node], *arguments: Any, **options: Any) -> Dataset:
        return Dataset(node(self._readable(), *arguments, **options))  # type: ignore[call-arg]

    def _readable(self) -> Node:
        if isinstance(self.node, Write):
            raise ParameterError(
                f"a written dataset ({self.node.describe()}) is the end of a pipeline. Go on from the dataset "
                "before write_...(), or read the files back."
            )
        return self.node

    # -- rows to rows ------------------------------------------------------------------------------

    def select(self, *columns: Name, **named: Any) -> Dataset:
        """Keep or compute columns, in the order given.

        Args:
            columns: column names or expressions; an expression takes its ``alias`` or leftmost column's name.
            named: expressions by output name; they come after ``columns``.

        Returns:
            A dataset with these columns only.

        Raises:
            ColumnNotFoundError: an unknown column, with near matches.
            TypeMismatchError: an expression that its columns' types don't allow.

        Example:
            >>> import headwater as hw
            >>> hw.range(3).select("id", double=hw.col("id") * 2).columns
            ['id', 'double']
        """
        return self._then(Project, named_expressions(columns, named, "select"))

    def with_columns(self, *columns: Expr, **named: Any) -> Dataset:
        """Add columns, or replace those of the same name, keeping all others.

        Args:
            columns: expressions, named by ``alias`` or their leftmost column.
            named: expressions or constants by output name.

        Returns:
            A dataset with the replaced columns in place and the new ones last. All expressions see
            the columns as they were before.

        Raises:
            ColumnNotFoundError, TypeMismatchError: as `select`.

        Example:
            >>> import headwater as hw
            >>> hw.range(3).with_columns(even=hw.col("id") % 2 == 0).columns
            ['id', 'even']
        """
        new = dict(named_expressions(columns, named, "with_columns"))
        kept = [(name, new.pop(name) if name in new else col(name)) for name in self.columns]
        return self._then(Project, (*kept, *new.items()))

    def rename(self, names: Mapping[str, str] | None = None, **named: str) -> Dataset:
        """Rename columns.

        Args:
            names: old name to new name.
            named: the same, by keyword.

        Returns:
            A dataset with the same columns in the same order.

        Raises:
            ColumnNotFoundError: an old name that isn't there.
            ParameterError: two columns would share a name.
        """
        if names is not None and not isinstance(names, Mapping):
            raise TypeMismatchError(f"rename({names!r}) takes old and new names, as rename(fare='price').")
        mapping = {**(names or {}), **named}
        column_names(mapping, "rename", self.columns)
        column_names(mapping.values(), "rename")
        return self._then(Project, tuple((mapping.get(name, name), col(name)) for name in self.columns))

    def drop(self, *columns: str) -> Dataset:
        """Leave columns out.

        Args:
            columns: names of columns that are there.

        Raises:
            ColumnNotFoundError: a name that isn't there.
        """
        column_names(columns, "drop", self.columns)
        return self._then(Project, tuple((name, col(name)) for name in self.columns if name not in columns))

    def filter(self, *predicates: Expr) -> Dataset:
        """Keep the rows for which every predicate is true; null counts as false.

        Args:
            predicates: boolean expressions.

        Raises:
            ColumnNotFoundError: an unknown column.
            TypeMismatchError: a predicate that isn't boolean.

        Example:
            >>> import headwater as hw
            >>> hw.range(10).filter(hw.col("id") > 7).compute(hw.Session("inline")).to_pydict()
            {'id': [8, 9]}
        """
        if not predicates:
            raise ParameterError("filter() needs a predicate, as filter(col('x') > 0).")
        for predicate in predicates:
            if not isinstance(predicate, Expr):
                raise TypeMismatchError(
                    f"filter({predicate!r}) takes expressions, not {type(predicate).__name__}. "
                    "Write filter(col('x') > 0); a plain name has to be wrapped in col(...)."
                )
        predicate = predicates[0]
        for other in predicates[1:]:
            predicate = predicate & other
        return self._then(Filter, predicate)

    def drop_nulls(self, *columns: str) -> Dataset:
        """Keep the rows that have no null in these columns; NaN is a value, not a null.

        Args:
            columns: where to look; all columns if none is given.
        """
        names = column_names(columns, "drop_nulls", self.columns) or self.columns
        return self.filter(*(col(name).is_not_null() for name in names))

    def fill_null(self, value: Any) -> Dataset:
        """Replace nulls.

        Args:
            value: one value for every column of a fitting kind (numbers for numeric columns, text for
                strings, …), or a dict of column name to value.

        Raises:
            ColumnNotFoundError: a dict names an unknown column.
            TypeMismatchError: a dict's value doesn't fit its column.
            ParameterError: no column can take the value.
        """
        if isinstance(value, Mapping):
            column_names(value, "fill_null", self.columns)
            return self.with_columns(**{name: col(name).fill_null(v) for name, v in value.items()})
        fits = {f.name: col(f.name).fill_null(value) for f in self.schema if takes_fill(f.type, value)}
        if not fits:
            raise ParameterError(
                f"fill_null({value!r}): no column takes a {type(value).__name__}; the columns are "
                f"{', '.join(f'{f.name}: {f.type}' for f in self.schema)}."
            )
        return self.with_columns(**fits)

    def limit(self, count: int) -> Dataset:
        """Keep the first ``count`` rows, in the dataset's order."""
        return self._then(Limit, whole(count, "limit", "count", 0))

    def union(self, *others: Dataset) -> Dataset:
        """Append the rows of other datasets with the same columns and types; duplicates stay.

        Raises:
            SchemaMismatchError: names, types or the order of columns differ.
        """
        if wrong := [type(other).__name__ for other in others if not isinstance(other, Dataset)]:
            raise TypeMismatchError(f"union() takes datasets, not {wrong[0]}. Unpack a list with *.")
        return Dataset(Union((self._readable(), *(other._readable() for other in others))))

    def distinct(self, *columns: str) -> Dataset:
        """Keep the first row for each combination of values.

        Args:
            columns: what must differ; all columns if none is given.
        """
        return self._then(Distinct, column_names(columns, "distinct", self.columns) or None)

    def sample(self, fraction: float, *, seed: int = 0) -> Dataset:
        """Keep each row with a probability; the same rows on every run, whatever columns are added or dropped.

        Args:
            fraction: probability, 0 to 1.
            seed: another seed draws other rows.

        Raises:
            ParameterError: a fraction outside 0 to 1.
        """
        node = self._readable()
        drawn = share(fraction, "sample")
        return Dataset(Sample(node, 0.0, drawn, whole(seed, "sample", "seed"), row_identity(node)))

    def split(
        self, *fractions: float, by: str | Sequence[str] | None = None, seed: int = 0
    ) -> tuple[Dataset, ...]:
        """Split the rows at random into disjoint datasets, as for training and test.

        Args:
            fractions: their shares, summing to at most 1.
            by: columns whose values decide: rows with equal values stay together, and a row keeps its
                side whatever else the data holds. None draws for each row.
            seed: another seed splits otherwise.

        Returns:
            A dataset for each fraction.

        Raises:
            ParameterError: fractions that are negative or sum to more than 1.

        Example:
            >>> import headwater as hw
            >>> train, test = hw.range(100).split(0.8, 0.2, by="id", seed=7)
            >>> session = hw.Session("inline")
            >>> train.count(session) + test.count(session)
            100
        """
        fractions = tuple(share(fraction, "split") for fraction in fractions)
        seed = whole(seed, "split", "seed")
        if not fractions or sum(fractions) > 1 + 1e-9:
            raise ParameterError(
                f"split{fractions}: give fractions of at least 0 that sum to at most 1, as split(0.8, 0.2)."
            )
        bounds = [0.0]
        for fraction in fractions:
            bounds.append(min(1.0, bounds[-1] + fraction))
        if abs(sum(fractions) - 1) < 1e-9:
            bounds[-1] = 1.0
        ranges = list(zip(bounds, bounds[1:]))
        node = self._readable()
        if by is None:
            rows = row_identity(node)
            return tuple(Dataset(Sample(node, low, high, seed, rows)) for low, high in ranges)
        names = column_names(by, "split", self.columns)
        draw = hash_unit(*(col(name) for name in names), seed=seed)
        return tuple(self.filter((draw >= lit(low)) & (draw < lit(high))) for low, high in ranges)

    def map_batches(
        self,
        function: Callable[[Any], Any],
        *,
        schema: pa.Schema | Mapping[str, Any] | None = None,
        format: BatchFormat = "numpy",
        batch_rows: int | None = None,
        same_length: bool = False,
        deterministic: bool = True,
    ) -> Dataset:
        """Apply a function to batches of rows.

        Args:
            function: takes a dict of column name to array, each of shape (rows,), or an Arrow table, and returns
                the same kind. It must not keep state between calls.
            schema: output schema, or a dict of column name to type, as ``{"total": "float64"}``; None runs
                the function once, now, on an empty batch to learn it.
            format: "numpy" arrays; "device" for arrays of where the rows are, CuPy's on a GPU and NumPy's
                elsewhere, for functions that are written for both; or "arrow".
            batch_rows: most rows in a batch; None takes about a hundred thousand.
            same_length: require as many rows out as in.
            deterministic: say False if equal input may give other output.

        Raises:
            SerializationError: the function can't be sent to workers.
            UserFunctionError: it fails on an empty batch and no schema is given; or, at run time, it
                raises or returns something that doesn't fit the schema.

        Example:
            >>> import headwater as hw
            >>> squares = hw.range(4).map_batches(lambda batch: {"square": batch["id"] ** 2})
            >>> squares.compute(hw.Session("inline")).to_pydict()
            {'square': [0, 1, 4, 9]}
        """
        if not callable(function):
            raise TypeMismatchError(f"map_batches() takes a function, not {type(function).__name__}.")
        if format not in ("numpy", "device", "arrow"):
            raise ParameterError(f"map_batches(format={format!r}): write 'numpy', 'device' or 'arrow'.")
        check_picklable(function)
        if schema is None:
            output = infer_output(function, self.schema, format, same_length)
        else:
            output = declared_output(schema)
        rows = None if batch_rows is None else whole(batch_rows, "map_batches", "batch_rows", 1)
        return self._then(MapBatches, function, output, format, rows, same_length, deterministic)

    # -- rows together -----------------------------------------------------------------------------

    def group_by(self, *keys: Name, **named: Expr) -> GroupedDataset:
        """Group rows with equal keys; null is a key like any other.

        Args:
            keys: column names or expressions.
            named: expressions by output name.

        Example:
            >>> import headwater as hw
            >>> by_parity = hw.range(10).group_by(odd=hw.col("id") % 2).agg(total=hw.sum("id"))
            >>> by_parity.sort("odd").compute(hw.Session("inline")).to_pydict()
            {'odd': [0, 1], 'total': [20, 25]}
        """
        exprs = named_expressions(keys, named, "group_by")
        if not exprs:
            raise ParameterError("group_by() needs a key; for one row over everything write ds.agg(...).")
        Project(self._readable(), exprs)  # checks names and types here, where the user wrote them
        return GroupedDataset(self, exprs)

    def agg(self, *aggregations: Expr, **named: Expr) -> Dataset:
        """Aggregate all rows to one.

        Args:
            aggregations: as ``col("x").sum()``; takes its column's name unless aliased.
            named: the same by output name; arithmetic on aggregations is allowed.

        Returns:
            A dataset of one row, also over no rows.

        Example:
            >>> import headwater as hw
            >>> hw.range(5).agg(hw.count().alias("rows"), mean=hw.mean("id")).columns
            ['rows', 'mean']
        """
        return Dataset(aggregate_node(self._readable(), (), named_expressions(aggregations, named, "agg")))

    def join(
        self,
        other: Dataset,
        on: str | Sequence[str] | None = None,
        *,
        left_on: str | Sequence[str] | None = None,
        right_on: str | Sequence[str] | None = None,
        how: Literal["inner", "left", "semi", "anti"] = "inner",
        suffix: str = "_right",
        strategy: Literal["auto", "broadcast", "shuffle"] = "auto",
    ) -> Dataset:
        """Match rows with those of another dataset on equal keys; null matches nothing.

        Args:
            other: the right side.
            on: key columns that both sides have.
            left_on, right_on: key columns where the names differ, pairwise.
            how: "inner", "left", "semi" (rows with a match) or "anti" (rows without).
            suffix: for right columns whose name the left side has.
            strategy: "broadcast" or "shuffle" overrules the planner.

        Returns:
            The left columns, then the right ones without its keys. Integer keys of different widths
            are widened to the larger.

        Raises:
            ColumnNotFoundError, TypeMismatchError, ParameterError: keys that aren't there or don't fit.
        """
        if not isinstance(other, Dataset):
            raise TypeMismatchError(f"join() takes a dataset, not {type(other).__name__}.")
        if (on is None) == (left_on is None and right_on is None) or (left_on is None) != (right_on is None):
            raise ParameterError("join() takes either on=..., or both left_on=... and right_on=....")
        left_keys = column_names(left_on if on is None else on, "join")
        right_keys = column_names(right_on if on is None else on, "join")
        left, right = widen_keys(self._readable(), other._readable(), left_keys, right_keys)
        return Dataset(Join(left, right, left_keys, right_keys, how, suffix, strategy))

    def sort(
        self,
        *keys: Name,
        descending: bool | Sequence[bool] = False,
        nulls_first: bool | Sequence[bool] = False,
    ) -> Dataset:
        """Order all rows by keys; rows with equal keys keep their order.

        Args:
            keys: column names or expressions, most significant first.
            descending: one direction for all keys, or one each.
            nulls_first: where nulls go, for all keys or each. NaN counts as the greatest number.
        """
        if not keys:
            raise ParameterError("sort() needs a key, as sort('fare', descending=True).")
        node, names = with_sort_columns(self._readable(), keys)
        down = flags(descending, len(names), "descending")
        first = flags(nulls_first, len(names), "nulls_first")
        ordered = Sort(node, tuple(SortKey(*key) for key in zip(names, down, first)))
        if node is self.node:
            return Dataset(ordered)
        return Dataset(Project(ordered, tuple((name, col(name)) for name in self.columns)))

    def repartition(
        self,
        count: int | None = None,
        *,
        by: str | Sequence[str] | None = None,
        kind: Literal["hash", "range"] = "hash",
    ) -> Dataset:
        """Spread the rows over other partitions.

        Args:
            count: how many; None lets the planner choose from the size.
            by: columns that decide; None spreads evenly, row by row (a count of 1 keeps the order).
            kind: "hash" brings equal values together, "range" puts lower values in lower partitions.
        """
        count = None if count is None else whole(count, "repartition", "count", 1)
        if by is None:
            return self._then(Repartition, "count", count)
        names = column_names(by, "repartition", self.columns)
        if kind == "range":
            return self._then(Repartition, "range", count, (), tuple(SortKey(name) for name in names))
        if kind != "hash":
            raise ParameterError(f"repartition(kind={kind!r}): write 'hash' or 'range'.")
        return self._then(Repartition, "hash", count, names)

    # -- between runs ------------------------------------------------------------------------------

    def persist(self, level: Literal["disk", "memory"] = "disk", replicas: int = 1) -> Dataset:
        """Keep the rows on the nodes once a run has computed them, for the runs that follow.

        Lazy: the first run that needs the rows computes and keeps them, later ones read them there. What a node
        took with it is computed again, and only that. Blocks stay for as long as this process lives, or until
        `unpersist`; then they go when a node needs the room.

        Args:
            level: "disk" keeps them in the nodes' scratch folders, and lets the system hold in memory
                what is read; "memory" makes it hold them there, as far as it allows.
            replicas: on how many nodes each partition is kept, if there are so many.

        Returns:
            A dataset with the same rows. Only what is made from the returned one reads them.

        Raises:
            ParameterError: another level, or less than one replica.

        Example:
            >>> import headwater as hw
            >>> with hw.Session("inline") as session:
            ...     squares = hw.range(4).select(square=hw.col("id") ** 2).persist()
            ...     squares.count(), squares.agg(most=hw.max("square")).compute().to_pylist()
            (4, [{'most': 9}])
        """
        node = self._readable()
        return Dataset(Persist(node.input if isinstance(node, Persist) else node, level, replicas))

    def unpersist(self, session: Session | None = None) -> int:
        """Let go of what `persist` kept; rows that a run reads at the moment go when room is needed.

        Args:
            session: whose nodes; None takes the current one.

        Returns:
            The bytes set free on the nodes.

        Raises:
            ParameterError: the dataset isn't one that `persist` returned.
        """
        if not isinstance(self.node, Persist):
            raise ParameterError(
                "unpersist() is for a dataset that persist() returned, as kept = ds.persist(); ...; "
                f"kept.unpersist(). This one ends in {type(self.node).__name__}."
            )
        return session_or_current(session).unpersist(self.node)

    def truncate(
        self,
        path: str,
        session: Session | None = None,
        *,
        format: Literal["arrow", "parquet"] = "arrow",
        **options: Any,
    ) -> Dataset:
        """Run the plan now, write its rows durably, and go on from the files: lineage ends there.

        Never needed for correctness. Worth it where a pipeline grows by a loop, so that what a lost partition is
        made from, and planning, grow with it; or to keep rows longer than any node.

        Args:
            path: a folder, or one file by its suffix; a local path that all workers see, or any fsspec URL.
            session: where to run; None takes the current one.
            format: "arrow", which is mapped rather than read where it is local, or "parquet", which is smaller.
            options: as for `write_arrow` and `write_parquet`, as ``if_exists="overwrite"``, ``storage_options``.

        Returns:
            A dataset that reads what was written: the same rows in the same order, in as many partitions
            as the files give.

        Raises:
            SinkExistsError: the destination holds data.
            HeadwaterError: the run failed; nothing is written.

        Example:
            >>> import headwater as hw
            >>> folder = getfixture("tmp_path") / "squares"
            >>> with hw.Session("inline"):
            ...     squares = hw.range(4).select(square=hw.col("id") ** 2).truncate(str(folder))
            ...     squares.compute().to_pydict()
            {'square': [0, 1, 4, 9]}
        """
        if format not in ("arrow", "parquet"):
            raise ParameterError(f"truncate(format={format!r}): write 'arrow' or 'parquet'.")
        write, source = {
            "arrow": (self.write_arrow, datasets.arrow_source),
            "parquet": (self.write_parquet, datasets.parquet_source),
        }[format]
        write(path, **options).run(session).close()
        return Dataset(Scan(source(path, storage_options=options.get("storage_options"))))

    # -- sinks -------------------------------------------------------------------------------------

    def write_parquet(self, path: str, *, partition_by: str | Sequence[str] = (), **options: Any) -> Dataset:
        """Write Parquet files: a folder, or one file where ``path`` ends in ``.parquet``.

        Nothing is visible at the destination before everything is; a rerun leaves no duplicates.

        Args:
            path: a local path or any fsspec URL.
            partition_by: columns that become ``name=value`` folders.
            options: of `headwater.datasets.ParquetSink`, as ``if_exists="overwrite"``, ``compression``.

        Returns:
            A handle to `run`, or to give to a session with others. Its rows list the files.

        Raises:
            SinkExistsError: the destination holds data.
        """
        names = column_names(partition_by, "write_parquet", self.columns)
        return self._write(datasets.ParquetSink, path, {"partition_by": names, **options})

    def write_csv(self, path: str, **options: Any) -> Dataset:
        """Write CSV files with a header: a folder, or one file where ``path`` ends in ``.csv``."""
        return self._write(datasets.CsvSink, path, options)

    def write_json(self, path: str, **options: Any) -> Dataset:
        """Write JSON lines: a folder, or one file where ``path`` ends in ``.json`` or ``.jsonl``."""
        return self._write(datasets.JsonSink, path, options)

    def write_arrow(self, path: str, **options: Any) -> Dataset:
        """Write Arrow IPC files: a folder, or one file where ``path`` ends in ``.arrow``."""
        return self._write(datasets.ArrowSink, path, options)

    def _write(self, sink: type[FileSink], path: str, options: Mapping[str, Any]) -> Dataset:
        return self._then(Write, sink(path, **known_options(sink, options, f"write_{sink.kind}")))

    # -- results -----------------------------------------------------------------------------------

    def run(self, session: Session | None = None) -> RunResult:
        """Run the plan and return its result handle, with rows, digest and report; fetch nothing yet."""
        return session_or_current(session).run({"result": self.node})

    def compute(self, session: Session | None = None) -> pa.Table:
        """Run the plan and fetch all rows.

        Args:
            session: where; None takes the innermost ``with Session()``, or starts a local cluster that
                lasts until the process ends.

        Returns:
            A table with this dataset's schema, in its order.
        """
        with self.run(session) as result:
            return result.table("result")

    def to_pandas(self, session: Session | None = None) -> pd.DataFrame:
        """Run the plan and fetch all rows as a pandas DataFrame."""
        return self.compute(session).to_pandas()

    def to_numpy(self, session: Session | None = None) -> dict[str, Any]:
        """Run the plan and fetch each column as a NumPy array of shape (rows,); nulls become NaN or None."""
        table = self.compute(session)
        return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.schema.names}

    def iter_batches(
        self, batch_rows: int | None = None, session: Session | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Run the plan and yield batches in order as partitions finish, holding one partition at a time.

        Args:
            batch_rows: exact number of rows in each batch but the last; None yields them as they come.
            session: as in `compute`.
        """
        rows = None if batch_rows is None else whole(batch_rows, "iter_batches", "batch_rows", 1)
        stream = session_or_current(session).stream(self.node)
        tables = stream if rows is None else rechunk(stream, rows)
        return (batch for table in tables for batch in table.combine_chunks().to_batches())

    def head(self, count: int = 5, session: Session | None = None) -> pa.Table:
        """Return the first rows as a table, computing only as many partitions as that takes."""
        if any(d is Dependency.WIDE for node in self.node.walk() for d in node.dependencies):
            return self.limit(count).compute(session)
        wanted = Limit(self._readable(), whole(count, "head", "count", 0)).count
        with contextlib.closing(session_or_current(session).stream(self.node)) as stream:
            return first_rows(stream, self.schema, wanted)

    def count(self, session: Session | None = None) -> int:
        """Run the plan and return the number of rows."""
        return self.agg(rows=count()).compute(session).column("rows")[0].as_py()

    def show(self, count: int = 10, session: Session | None = None) -> None:
        """Print the first rows as a text table."""
        from .runtime.display import table_text

        print(table_text(self.head(count, session)))

    def explain(self, session: Session | None = None) -> str:
        """Return the logical, optimized and physical plans with sizes, exchanges and rules, as text."""
        return explain({"result": self.node}, session.options if session else None)

    def predict(
        self,
        model: Model,
        *,
        names: Mapping[str, str] | None = None,
        nulls: Literal["error", "null"] = "error",
    ) -> Dataset:
        """Append what a model predicts from each row, lazily; see `Model.predict`.

        Args:
            model: of `hw.train` or `hw.load_model`.
            names: predicted column to the name it shall have, as ``{"prediction": "expected_fare"}``.
            nulls: what to do with rows that lack a feature (null or NaN): "error", or "null" for null predictions.

        Returns:
            A dataset with all columns, and the predicted ones last.

        Raises:
            ColumnNotFoundError, TypeMismatchError: a feature isn't there, or isn't a number.
            ParameterError: a predicted column has the name of one that is there.
        """
        if not hasattr(model, "predict_batch"):
            raise TypeMismatchError(f"predict() takes a model of hw.train(...), not {type(model).__name__}.")
        return model.predict(Dataset(self._readable()), names=names, nulls=nulls)

    def _fit(self, chain: Chain) -> FittedPrep:
        """Fit a preparation chain on these rows; what ``chain.fit(dataset)`` calls."""
        from .preparation import FittedPrep

        return FittedPrep(chain.fit_nodes(self._readable()))
