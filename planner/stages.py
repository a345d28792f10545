"""Stages: fragments of fused operators, and the builder that cuts them into stages at exchanges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from ..lineage.keys import lineage_key
from ..ops.expressions.expr import Column
from ..ops.kernel import Kernel
from ..ops.partitioner import HashPartitioner, Partitioner, RangePartitioner, SinglePartitioner
from ..ops.persist import strongest
from ..ops.project import ProjectKernel
from ..ops.sink import Sink
from ..ops.sort import SortKey
from ..ops.source import Split
from ..ops.write import Write
from .partitioning import Hashed, Partitioning
from .plan import (
    BlockLeaf,
    BroadcastLeaf,
    Estimate,
    Exchange,
    Operator,
    RuleEvent,
    ScanLeaf,
    ShuffleLeaf,
    Stage,
    Step,
    Storage,
    UnionStep,
    all_leaves,
)
from .widths import row_width

#: most operators on a path through one stage; a longer chain is cut, so that programs pickle and run
#: without deep recursion
MAX_DEPTH = 64


@dataclass(frozen=True)
class OpenExchange:
    """An exchange that brought equal keys together, into a number of partitions that nothing depends on yet.

    Attributes:
        stage: that is cut by it.
        rows: the fragment that the stage was made of.
        inside: the keys as that fragment calls them.
        keys: what they are called now, in the same order.
    """

    stage: int
    rows: Fragment
    inside: tuple[str, ...]
    keys: tuple[str, ...]

    def renamed(self, names: Mapping[str, str]) -> OpenExchange | None:
        """Return the same under the columns' new names; None if one has no new name."""
        if not all(key in names for key in self.keys):
            return None
        return replace(self, keys=tuple(names[key] for key in self.keys))


@dataclass(frozen=True)
class Fragment:
    """An operator tree on its way to becoming a stage, or the part of one.

    Attributes:
        operator: the tree.
        partitions: how many it computes.
        schema: of its rows.
        key: lineage key of its rows.
        estimate: of all partitions together.
        labels: its operators in words, first to last.
        splits: for each scan leaf's slot, its splits.
        known: what is known about where rows lie.
        depth: operators on the longest path from a leaf.
        open: the exchange below, if all that was done to its rows since can be done in other partitions as well.
    """

    operator: Operator
    partitions: int
    schema: pa.Schema
    key: str
    estimate: Estimate
    labels: tuple[str, ...] = ()
    splits: Mapping[int, tuple[Split, ...]] = field(default_factory=dict)
    known: Partitioning = None
    depth: int = 0
    open: OpenExchange | None = None


class StageBuilder:
    """Collects stages. Equal stages (equal keys) are made once."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.events: dict[RuleEvent, None] = {}
        self._by_key: dict[str, int] = {}
        #: stages that a stage reads, or that were found by their key: their exchanges stay as they are
        self._settled: set[int] = set()
        self._slots = 0

    def slot(self) -> int:
        """Return a slot number that no other leaf of the plan has."""
        self._slots += 1
        return self._slots - 1

    def trace(self, rule: str, fired: bool, detail: str) -> None:
        """Note a decision, once."""
        self.events[RuleEvent(rule, fired, detail)] = None

    def step(
        self,
        kernel: Kernel,
        inputs: Sequence[Fragment],
        schema: pa.Schema,
        key: str,
        estimate: Estimate,
        label: str,
        known: Partitioning = None,
    ) -> Fragment:
        """Fuse an operator onto its inputs; the first one decides the partitions."""
        inputs = [self.blocks(item) if item.depth >= MAX_DEPTH else item for item in inputs]
        splits = {slot: item for fragment in inputs for slot, item in fragment.splits.items()}
        return Fragment(
            operator=Step(kernel, tuple(item.operator for item in inputs), schema, estimate),
            partitions=inputs[0].partitions,
            schema=schema,
            key=key,
            estimate=estimate,
            labels=(*inputs[0].labels, label),
            splits=splits,
            known=known,
            depth=1 + max(item.depth for item in inputs),
        )

    def union(
        self, branches: Sequence[Fragment], schema: pa.Schema, key: str, estimate: Estimate
    ) -> Fragment:
        """Put the partitions of several fragments behind each other."""
        branches = [self.blocks(item) if item.depth >= MAX_DEPTH else item for item in branches]
        texts = list(dict.fromkeys(" > ".join(item.labels) or "blocks" for item in branches))
        listed = " | ".join(texts[:3]) + (" | …" if len(texts) > 3 else "")
        return Fragment(
            operator=UnionStep(tuple((item.operator, item.partitions) for item in branches), schema),
            partitions=sum(item.partitions for item in branches),
            schema=schema,
            key=key,
            estimate=estimate,
            labels=(f"union of {len(branches)} ({listed})",),
            splits={slot: item for fragment in branches for slot, item in fragment.splits.items()},
            depth=1 + max(item.depth for item in branches),
        )

    def cut(self, fragment: Fragment, exchange: Exchange | None = None) -> int:
        """Make a stage of a fragment, or find the one it reads if that is all it does; return its id."""
        if isinstance(fragment.operator, BlockLeaf) and exchange is None:
            return fragment.operator.stage
        key = self._key(fragment, exchange)
        if key in self._by_key:
            self._settled.add(self._by_key[key])
        else:
            self._by_key[key] = self._append(fragment, key, exchange)
        return self._by_key[key]

    def write(self, fragment: Fragment, node: Write) -> int:
        """Make a stage that ends in a sink; return its id."""
        fragment = replace(fragment, key=node.key, labels=(*fragment.labels, f"write {node.sink.describe()}"))
        return self._append(fragment, self._key(fragment, None), None, node.sink)

    def blocks(self, fragment: Fragment) -> Fragment:
        """Cut a fragment and read its blocks: a narrow dependency. Segments are read again as they are."""
        if isinstance(fragment.operator, ShuffleLeaf):
            return replace(fragment, operator=replace(fragment.operator, slot=self.slot()))
        stage = self.cut(fragment)
        return _leaf(fragment, BlockLeaf(self.slot(), stage, fragment.schema))

    def keep(self, fragment: Fragment, storage: Storage) -> Fragment:
        """Cut a fragment into a stage whose blocks outlive the run, and read them."""
        id = self.cut(fragment)
        if (other := self.stages[id].storage) is not None:
            storage = Storage(*strongest(storage, other))
        self.stages[id] = replace(self.stages[id], storage=storage)
        return _leaf(fragment, BlockLeaf(self.slot(), id, fragment.schema))

    def kept(self) -> set[int]:
        """Ids of the persisted stages."""
        return {stage.id for stage in self.stages if stage.storage is not None}

    def broadcast(self, fragment: Fragment) -> Fragment:
        """Cut a fragment and read all of it in every partition."""
        stage = self.cut(fragment)
        return replace(_leaf(fragment, BroadcastLeaf(self.slot(), stage, fragment.schema)), known=None)

    def shuffle(self, fragment: Fragment, partitioner: Partitioner) -> Fragment:
        """Cut a fragment with an exchange and read segment i in partition i: a wide dependency."""
        return self._segments(fragment, Exchange(partitioner))

    def gather(self, fragment: Fragment) -> Fragment:
        """Bring all rows to one partition, in order; nothing to do where there is one already."""
        return fragment if fragment.partitions == 1 else self.shuffle(fragment, SinglePartitioner())

    def hashed(self, fragment: Fragment, keys: Sequence[str], count: int) -> Fragment:
        """Bring rows with equal keys together."""
        if count == 1:
            return self.gather(fragment)
        return self.shuffle(fragment, HashPartitioner(tuple(keys), count))

    def grouped(self, fragment: Fragment, keys: Sequence[str], count: int) -> Fragment:
        """Bring rows with equal keys together for an operator that takes them in any partitions; see `rehashed`."""
        moved = self.hashed(fragment, keys, count)
        assert isinstance(moved.operator, ShuffleLeaf)
        return replace(moved, open=OpenExchange(moved.operator.stage, fragment, tuple(keys), tuple(keys)))

    def rehashed(self, fragment: Fragment, keys: Sequence[str], count: int) -> Fragment:
        """Bring rows with equal keys together, by an exchange below that does it otherwise, or by one more."""
        there = fragment.open
        if count == 1 or there is None or there.stage in self._settled or set(there.keys) != set(keys):
            return self.hashed(fragment, keys, count)
        inside = tuple(there.inside[there.keys.index(key)] for key in keys)
        exchange = Exchange(HashPartitioner(inside, count))
        key, stage = self._key(there.rows, exchange), self.stages[there.stage]
        if key in self._by_key:
            return self.hashed(fragment, keys, count)
        del self._by_key[stage.key]
        self._by_key[key] = stage.id
        self.stages[stage.id] = replace(stage, key=key, exchange=exchange)
        self.trace(
            "exchange_elimination",
            True,
            f"{stage.label}: {exchange.partitioner.describe()}, as is wanted above",
        )
        return replace(fragment, partitions=count, known=Hashed(tuple(keys), count))

    def ranged(
        self, fragment: Fragment, keys: tuple[SortKey, ...], count: int, alone: Fragment | None = None
    ) -> Fragment:
        """Bring rows into ranges of the sort order, whose boundaries come from a sample.

        The sample is drawn from the same rows of ``alone``, which has their keys only; without it from
        the rows themselves, which wait in blocks until the boundaries are known.
        """
        if alone is None:
            alone = fragment = self._whole_blocks(fragment)
        sampled = self._sampled(alone, keys)
        return self._segments(fragment, Exchange(RangePartitioner(keys, count), boundaries_from=sampled))

    def _segments(self, fragment: Fragment, exchange: Exchange) -> Fragment:
        stage = self.cut(fragment, exchange)
        partitioner = exchange.partitioner
        known = (
            Hashed(partitioner.keys, partitioner.count) if isinstance(partitioner, HashPartitioner) else None
        )
        return Fragment(
            operator=ShuffleLeaf(self.slot(), stage, fragment.schema),
            partitions=exchange.count,
            schema=fragment.schema,
            key=self.stages[stage].key,
            estimate=fragment.estimate,
            known=known,
        )

    def _sampled(self, fragment: Fragment, keys: tuple[SortKey, ...]) -> int:
        """Cut a fragment into a stage that also leaves a sample of its keys; a stage leaves one of one sort order."""
        stage = self.stages[self.cut(fragment)]
        if stage.sample not in ((), keys):
            stage = self.stages[self.cut(self._keys_alone(self._whole_blocks(fragment), keys))]
        self.stages[stage.id] = replace(stage, sample=keys)
        return stage.id

    def _whole_blocks(self, fragment: Fragment) -> Fragment:
        """Cut a fragment and read its blocks."""
        return _leaf(fragment, BlockLeaf(self.slot(), self.cut(fragment), fragment.schema))

    def _keys_alone(self, fragment: Fragment, keys: tuple[SortKey, ...]) -> Fragment:
        """The columns of a sort order."""
        names = list(dict.fromkeys(key.column for key in keys))
        schema = pa.schema([fragment.schema.field(name) for name in names])
        share = row_width(schema) / row_width(fragment.schema)
        size = replace(fragment.estimate, bytes=fragment.estimate.bytes * share)
        key = lineage_key("Sampled", [str(key) for key in keys], [fragment.key])
        kernel = ProjectKernel(tuple((name, Column(name)) for name in names), schema)
        return self.step(kernel, [fragment], schema, key, size, f"sample [{', '.join(names)}]")

    def _key(self, fragment: Fragment, exchange: Exchange | None) -> str:
        parents = [
            self.stages[leaf.stage].key for leaf in all_leaves(fragment.operator) if hasattr(leaf, "stage")
        ]
        how = None if exchange is None else exchange.partitioner.describe()
        return lineage_key("Stage", (fragment.key, fragment.partitions, how), parents)

    def _append(
        self, fragment: Fragment, key: str, exchange: Exchange | None, sink: Sink | None = None
    ) -> int:
        id = len(self.stages)
        self._settled.update(
            leaf.stage for leaf in all_leaves(fragment.operator) if not isinstance(leaf, ScanLeaf)
        )
        self.stages.append(
            Stage(
                id=id,
                key=key,
                label=" > ".join(fragment.labels) or ("exchange" if exchange else "copy"),
                operator=fragment.operator,
                partitions=fragment.partitions,
                schema=fragment.schema,
                splits=fragment.splits,
                exchange=exchange,
                sink=sink,
                estimate=fragment.estimate,
            )
        )
        return id


def _leaf(fragment: Fragment, leaf: BlockLeaf | BroadcastLeaf) -> Fragment:
    """Return what reads a fragment's stage in its place."""
    return replace(fragment, operator=leaf, labels=(), splits={}, depth=0, open=None)
