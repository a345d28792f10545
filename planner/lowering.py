"""Lowering: one function an operator, from a logical node over fragments to a fragment.

Each decides whether the operator needs an exchange, which, and into how many partitions, from the
estimates and from what is known about where rows lie already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import PlanError
from ..lineage.keys import lineage_key
from ..ops.aggregate import Aggregate, FinalAggregateKernel, PartialAggregateKernel, state_schema
from ..ops.distinct import Distinct, DistinctKernel
from ..ops.expressions.expr import Column
from ..ops.filter import Filter, FilterKernel
from ..ops.join import Join
from ..ops.limit import Limit, LimitKernel
from ..ops.map_batches import MapBatches, MapBatchesKernel
from ..ops.node import Node, listed
from ..ops.ordering import key_names
from ..ops.partitioner import RoundRobinPartitioner
from ..ops.project import Project, ProjectKernel
from ..ops.repartition import Repartition
from ..ops.sample import Sample, SampleKernel
from ..ops.scan import Scan
from ..ops.sort import Sort, SortKernel, SortKey, TopK, TopKKernel
from ..ops.source import Source, Split
from ..ops.training.train import Train, TrainKernel
from ..ops.transform import Transform, TransformKernel
from ..ops.union import Union
from .joins import lower_join
from .options import PlanOptions
from .partitioning import Hashed, gathers, new_names, through_project
from .plan import Estimate, ScanLeaf
from .read_types import changes, read_types
from .rereading import is_scanned
from .rewrite import title
from .rules.column_pruning import column_pruning
from .rules.redundant_operators import redundant_operators
from .scans import EmptySource, kept_splits
from .sealing import Sealed
from .sizes import estimate, partition_count, state_bytes
from .stages import Fragment, StageBuilder
from .widths import row_width

#: share of a row's bytes up to which its sort keys are worth a pass of their own
MOST_KEYS = 0.5
#: what a model is expected to take, in bytes: little beside the rows it is made from
MODEL_BYTES = 1 << 20

#: comparing a row's key takes the time of moving so many bytes, so narrow rows make smaller partitions
_KEY_BYTES = 80


@dataclass
class Lowering:
    """What the functions below share: the options, the stages so far, and each source's splits."""

    options: PlanOptions
    builder: StageBuilder

    def __post_init__(self) -> None:
        self._splits: dict[int, tuple[Source, tuple[Split, ...]]] = {}
        #: what reads the stage of each sealed leaf that stands for something persisted
        self.persisted: dict[Node, Fragment] = {}

    def enabled(self, rule: str) -> bool:
        """Whether a physical rule may fire."""
        return rule not in self.options.disabled_rules

    def count(self, size: float) -> int:
        """Into how many partitions an exchange cuts so many bytes."""
        return partition_count(size, self.options.partition_bytes, self.options.max_partitions)

    def splits(self, source: Source) -> tuple[Split, ...]:
        """All splits of a source, listed once a plan."""
        if id(source) not in self._splits:
            self._splits[id(source)] = (source, tuple(source.splits()))
        return self._splits[id(source)][1]

    def lower(self, node: Node, inputs: Sequence[Fragment]) -> Fragment:
        """Lower a node over its lowered inputs.

        Raises:
            PlanError: there is no way to run such a node.
        """
        function = LOWERINGS.get(type(node))
        if function is None:
            raise PlanError(f"{title(node)}: there is no physical operator for {type(node).__name__}.")
        return function(self, node, *inputs) if type(node) is not Union else function(self, node, inputs)

    def narrow(self, node: Node) -> Fragment:
        """Lower a tree of few operators that need no exchange."""
        return self.lower(node, [self.narrow(child) for child in node.inputs])


def lower_scan(low: Lowering, node: Scan) -> Fragment:
    """Read the splits that may hold rows; one empty partition where none may."""
    every = low.splits(node.source)
    splits = kept_splits(node, every, low.enabled("split_pruning"))
    source, predicate = node.source, node.predicate
    if len(splits) < len(every):
        why = "the predicate" if predicate is not None else f"limit {node.limit}"
        detail = f"Scan {source.describe()}: {len(splits)} of {len(every)} splits, by {why}"
        low.builder.trace("split_pruning", True, detail)
    size = estimate(node, (), splits)
    if not splits:
        source, predicate = EmptySource(source.schema), None
        splits = tuple(source.splits())
    leaf = ScanLeaf(low.builder.slot(), source, tuple(node.schema.names), predicate, node.limit, node.schema)
    label = f"{'scan' if node.predicate is None else 'filtered scan'} {node.source.describe()}"
    return Fragment(
        operator=leaf,
        partitions=len(splits),
        schema=node.schema,
        key=node.key,
        estimate=size,
        labels=(label,),
        splits={leaf.slot: splits},
    )


def lower_sealed(low: Lowering, node: Sealed) -> Fragment:
    """Read the blocks of what is persisted."""
    return low.builder.blocks(low.persisted[node])


def lower_filter(low: Lowering, node: Filter, below: Fragment) -> Fragment:
    """Filter in place."""
    fragment = _narrow(low, node, below, FilterKernel(node.predicate), "filter", keep=True)
    return replace(fragment, open=below.open)


def lower_project(low: Lowering, node: Project, below: Fragment) -> Fragment:
    """Project in place."""
    fragment = _narrow(low, node, below, ProjectKernel(node.exprs, node.schema), "project")
    still = None if below.open is None else below.open.renamed(new_names(node))
    return replace(fragment, known=through_project(below.known, node), open=still)


def lower_sample(low: Lowering, node: Sample, below: Fragment) -> Fragment:
    """Draw in place."""
    kernel = SampleKernel(node.low, node.high, node.seed, node.stream)
    return _narrow(low, node, below, kernel, "sample", keep=True)


def lower_map_batches(low: Lowering, node: MapBatches, below: Fragment) -> Fragment:
    """Call the user function in place."""
    kernel = MapBatchesKernel(
        node.function,
        node.output,
        node.format,
        node.batch_rows,
        node.same_length,
        node.name,
        node.deterministic,
    )
    return _narrow(low, node, below, kernel, f"map {node.name}")


def lower_transform(low: Lowering, node: Transform, below: Fragment, state: Fragment) -> Fragment:
    """Transform in place, with the fitted state broadcast."""
    size = estimate(node, (below.estimate, state.estimate))
    inputs = (below, low.builder.broadcast(state))
    label = f"transform {node.describe()}"
    return low.builder.step(TransformKernel(node.step), inputs, node.schema, node.key, size, label)


def lower_train(low: Lowering, node: Train, *below: Fragment) -> Fragment:
    """Train in one partition, by a gang that reads blocks of all rows."""
    inputs = [replace(low.builder.broadcast(fragment), partitions=1) for fragment in below]
    size = Estimate(1, MODEL_BYTES)
    label = f"train {node.describe()}"
    return low.builder.step(TrainKernel.of(node), inputs, node.schema, node.key, size, label)


def lower_union(low: Lowering, node: Union, branches: Sequence[Fragment]) -> Fragment:
    """Put the inputs' partitions behind each other; nothing moves."""
    size = estimate(node, [branch.estimate for branch in branches])
    return low.builder.union(branches, node.schema, node.key, size)


def lower_limit(low: Lowering, node: Limit, below: Fragment) -> Fragment:
    """Limit each partition, gather, limit again."""
    return _twice(low, node, below, LimitKernel(node.count), "limit")


def lower_top_k(low: Lowering, node: TopK, below: Fragment) -> Fragment:
    """Take the top of each partition, gather, take the top again."""
    return _twice(low, node, below, TopKKernel(node.keys, node.count), "top k")


def lower_sort(low: Lowering, node: Sort, below: Fragment) -> Fragment:
    """Cut by ranges whose boundaries a sample gives, then sort each; a small input is sorted in one piece."""
    moved = _ranged(low, node.input, below, node.keys, low.count(below.estimate.bytes))
    size = estimate(node, [below.estimate])
    return low.builder.step(SortKernel(node.keys), [moved], node.schema, node.key, size, "sort")


def lower_distinct(low: Lowering, node: Distinct, below: Fragment) -> Fragment:
    """Drop duplicates within partitions, bring equal keys together, drop duplicates again."""
    kernel = DistinctKernel(node.keys)
    size = estimate(node, [below.estimate])
    keys = node.key_columns
    if below.partitions > 1 and not _spared(low, node, below, keys):
        partial = low.builder.step(
            kernel, [below], node.schema, _map_side(node), size, "distinct", known=below.known
        )
        below = low.builder.grouped(partial, keys, low.count(max(size.bytes, size.rows * _KEY_BYTES)))
    done = low.builder.step(kernel, [below], node.schema, node.key, size, "distinct", known=below.known)
    return replace(done, open=below.open)


def lower_aggregate(low: Lowering, node: Aggregate, below: Fragment) -> Fragment:
    """Aggregate to states within partitions, bring equal keys together, merge and finish the states."""
    size = estimate(node, [below.estimate])
    states = state_schema(node.input.schema, node.keys, node.aggregations)
    rows = size.rows if node.keys else float(below.partitions)
    state_size = Estimate(rows, state_bytes(node, states, rows, below.estimate.rows), size.exact)
    count = low.count(state_size.bytes) if node.keys else 1
    moves = below.partitions > 1 and not _spared(low, node, below, node.keys)
    combine = low.enabled("map_side_combine")
    if moves and not combine:
        below = low.builder.grouped(below, node.keys, low.count(below.estimate.bytes) if node.keys else 1)
    if low.enabled("read_types"):
        read = [a.column for a in node.aggregations if a.column is not None]
        operator = read_types(below.operator, node.keys, read)
        if changed := changes(below.operator, operator):
            low.builder.trace("read_types", True, f"{title(node)}: {listed(changed)}")
        below = replace(below, operator=operator)
    partial = low.builder.step(
        PartialAggregateKernel(node.keys, node.aggregations, states),
        [below],
        states,
        _map_side(node),
        state_size,
        "partial aggregate",
        known=below.known,
    )
    if moves and combine:
        low.builder.trace("map_side_combine", True, f"{title(node)}: states are exchanged in place of rows")
        partial = low.builder.grouped(partial, node.keys, count)
    kernel = FinalAggregateKernel(node.keys, node.aggregations, node.schema)
    known = partial.known if gathers(partial.known, node.keys) else None
    done = low.builder.step(kernel, [partial], node.schema, node.key, size, "final aggregate", known=known)
    return replace(done, open=(partial if combine else below).open) if node.keys else done


def lower_repartition(low: Lowering, node: Repartition, below: Fragment) -> Fragment:
    """Move rows as the user asked; one partition is gathered in order."""
    count = node.count or low.count(below.estimate.bytes)
    if count == 1:
        return low.builder.gather(below)
    if node.kind == "count":
        return low.builder.shuffle(below, RoundRobinPartitioner(count))
    if node.kind == "range":
        keys = node.sort_keys or tuple(SortKey(name) for name in node.keys)
        return _ranged(low, node.input, below, keys, count)
    if low.enabled("exchange_elimination") and below.known == Hashed(node.keys, count):
        low.builder.trace("exchange_elimination", True, f"{title(node)}: its input lies so already")
        return below
    rehashed = low.builder.rehashed if low.enabled("exchange_elimination") else low.builder.hashed
    return rehashed(below, node.keys, count)


def _narrow(low: Lowering, node: Node, below: Fragment, kernel, label: str, keep: bool = False) -> Fragment:
    """Fuse an operator that keeps rows where they are; ``keep`` says that it keeps the columns too."""
    known = below.known if keep else None
    size = estimate(node, [below.estimate])
    return low.builder.step(kernel, [below], node.schema, node.key, size, label, known)


def _twice(low: Lowering, node: Node, below: Fragment, kernel, label: str) -> Fragment:
    """Apply a kernel within each partition, and again to what is left, in one partition."""
    size = estimate(node, [below.estimate])
    if below.partitions > 1:
        each = Estimate(size.rows * below.partitions, size.bytes * below.partitions)
        each = min(each, below.estimate, key=lambda e: e.rows)
        partial = low.builder.step(kernel, [below], node.schema, _map_side(node), each, label)
        below = low.builder.gather(partial)
    return low.builder.step(kernel, [below], node.schema, node.key, size, label)


def _ranged(low: Lowering, node: Node, below: Fragment, keys: tuple[SortKey, ...], count: int) -> Fragment:
    """Bring rows into ranges; what is only scanned, or persisted, is read for its keys first.

    So no row is written twice, and kept blocks do without samples.
    """
    if count == 1:
        return low.builder.gather(below)
    alone = None
    if low.enabled("key_sampling") and is_scanned(node, below.operator, low.builder.kept()):
        names = [name for name in node.schema.names if name in key_names(keys)]
        project = Project(node, tuple((name, Column(name)) for name in names))
        small = row_width(project.schema) <= MOST_KEYS * row_width(node.schema)
        if small or isinstance(node, Sealed):
            pruned, _ = redundant_operators(column_pruning({"": project})[0])
            alone = low.narrow(pruned[""])
            low.builder.trace(
                "key_sampling", True, f"range [{', '.join(names)}]: these columns are read first"
            )
    return low.builder.ranged(below, keys, count, alone)


def _spared(low: Lowering, node: Node, below: Fragment, keys: Sequence[str]) -> bool:
    """Return whether rows with equal keys share a partition already."""
    if not keys or below.known is None or not gathers(below.known, keys):
        return False
    spared = low.enabled("exchange_elimination")
    how = f"its input is hashed by [{', '.join(below.known.keys)}] into {below.known.count}"
    low.builder.trace(
        "exchange_elimination", spared, f"{title(node)}: {how}" + ("" if spared else ", but it is disabled")
    )
    return spared


def _map_side(node: Node) -> str:
    """Lineage key of what a node leaves before its exchange."""
    return lineage_key("MapSide", (), [node.key])


#: node type to the function that lowers it; Write is lowered by planner/physical.py, as it ends a stage
LOWERINGS: dict[type[Node], Callable[..., Fragment]] = {
    Scan: lower_scan,
    Filter: lower_filter,
    Project: lower_project,
    Sample: lower_sample,
    MapBatches: lower_map_batches,
    Transform: lower_transform,
    Train: lower_train,
    Union: lower_union,
    Limit: lower_limit,
    TopK: lower_top_k,
    Sort: lower_sort,
    Distinct: lower_distinct,
    Aggregate: lower_aggregate,
    Join: lower_join,
    Repartition: lower_repartition,
    Sealed: lower_sealed,
}
