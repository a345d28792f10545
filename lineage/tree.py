"""The tree of what a partition is made from, and what making it again would cost. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .fingerprint import Fingerprint
from .graph import Dependency, LineageGraph
from .history import Fate, History, StageHistory
from .recovery import plan_recovery
from .stream_fingerprint import digest_of, is_stream


@dataclass(frozen=True)
class Branch:
    """Partitions of one stage that what stands above it in the tree reads.

    Attributes:
        stage: the stage's id.
        mask: which of its partitions; shape (partitions,).
        dependency: how they are read; None for the root.
        lasts: for each level down to this one, whether it is the last child of its parent.
        known: what it is made from stands in the tree already, with an earlier branch.
    """

    stage: int
    mask: np.ndarray
    dependency: Dependency | None
    lasts: tuple[bool, ...] = ()
    known: bool = False

    @property
    def partitions(self) -> np.ndarray:
        """Indices of the partitions, ascending."""
        return np.flatnonzero(self.mask)


@dataclass(frozen=True)
class Cost:
    """What making partitions again takes.

    Attributes:
        partitions: indices of the partitions to run, by stage, in order of execution.
        bytes: that they leave.
        seconds: that their tasks took when they ran.
        unmeasured: how many of them have never run, and aren't in bytes and seconds.
        reads: how many other partitions they read where they are.
    """

    partitions: dict[int, np.ndarray]
    bytes: int
    seconds: float
    unmeasured: int
    reads: int

    @property
    def count(self) -> int:
        """How many partitions run."""
        return sum(map(len, self.partitions.values()))


def ancestry(graph: LineageGraph, stage: int, partition: int) -> Iterator[Branch]:
    """Walk the tree of what a partition is made from, the root first, parents before what they read.

    Partitions that are read in one way by one branch are one branch, so a wide dependency is one, too.
    A branch whose ancestors have been shown isn't followed again, so a graph with much in common
    gives a short tree.

    Args:
        graph: what is made from what.
        stage: of the partition.
        partition: its index.

    Yields:
        The branches in the order of the lines of a printed tree.
    """
    todo = [Branch(stage, graph.select(stage, [partition])[stage], None)]
    followed: dict[int, list[np.ndarray]] = {}
    while todo:
        branch = todo.pop()
        children = _children(graph, branch)
        before = followed.setdefault(branch.stage, [])
        known = bool(children) and any(not (branch.mask & ~mask).any() for mask in before)
        yield Branch(branch.stage, branch.mask, branch.dependency, branch.lasts, known)
        if not known:
            before.append(branch.mask)
            todo += reversed(children)


def rebuild_cost(history: History, stage: int, partition: int, from_sources: bool = False) -> Cost:
    """Count what it takes to make a partition again.

    Args:
        history: of the run.
        stage: of the partition.
        partition: its index.
        from_sources: as if nothing were there any more; else what is there is read.

    Returns:
        The smallest set of partitions that must run, and its cost.
    """
    target = history.graph.select(stage, [partition])
    present = [there & ~wanted & (not from_sources) for there, wanted in zip(history.present(), target)]
    plan = plan_recovery(history.graph, present, target)
    steps = dict(plan.steps())
    pairs = [(history.stages[stage_id], chosen) for stage_id, chosen in steps.items()]
    return Cost(
        steps,
        sum(int(made.bytes[chosen].sum()) for made, chosen in pairs),
        sum(float(made.seconds[chosen].sum()) for made, chosen in pairs),
        sum(int(made.never_ran[chosen].sum()) for made, chosen in pairs),
        sum(int(mask.sum()) for mask in plan.reads(history.graph)),
    )


def places(history: History, branch: Branch) -> dict[str, int]:
    """Count where the results of a branch are.

    Returns:
        Results by place: a node's id (its first eight letters, if it is long), with the number of copies on
        other nodes, as "node-a, +1 copy"; "sink"; or the name of a `Fate`.
    """
    stage = history.stages[branch.stage]
    found: dict[str, int] = {}
    for partition in branch.partitions.tolist():
        fate = Fate(stage.fate[partition])
        name = fate.name.lower().replace("_", " ")
        if fate is Fate.HELD:
            copies = len(stage.copies.get(partition, ()))
            more = f", +{copies} {'copy' if copies == 1 else 'copies'}" if copies else ""
            name = "sink" if stage.is_sink else _short(history.nodes[stage.node[partition]]) + more
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _short(node: str) -> str:
    return node[:8] if len(node) == 32 else node


def fingerprint_of(stage: StageHistory, partitions: np.ndarray) -> str | None:
    """Put the recorded fingerprints of partitions together, in order; None if some have never run.

    Those of outputs merge to that of their rows together; others stand for these partitions only.
    """
    texts = [text for text in (stage.fingerprints[p] for p in partitions.tolist()) if text is not None]
    if len(texts) < len(partitions):
        return None
    if any(map(is_stream, texts)):
        return texts[0] if len(texts) == 1 else digest_of(texts)
    total = Fingerprint()
    for text in texts:
        total.merge(Fingerprint.parse(text))
    return total.hexdigest()


def _children(graph: LineageGraph, branch: Branch) -> list[Branch]:
    found: dict[tuple[int, Dependency], np.ndarray] = {}
    for edge in graph.edges[branch.stage]:
        wanted = branch.mask[edge.start : edge.stop]
        if wanted.any() and graph.partitions[edge.source]:
            narrow = edge.dependency is Dependency.NARROW
            read = wanted if narrow else np.ones(graph.partitions[edge.source], dtype=bool)
            key = (edge.source, edge.dependency)
            found[key] = found.get(key, np.zeros_like(read)) | read
    last = len(found) - 1
    return [
        Branch(source, mask, dependency, (*branch.lasts, position == last))
        for position, ((source, dependency), mask) in enumerate(found.items())
    ]
