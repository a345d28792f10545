"""Recovery plans on random DAGs: enough, minimal and in order, against trying every set of partitions."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headwater.lineage.graph import Dependency, Edge, LineageGraph
from headwater.lineage.recovery import plan_recovery

Part = tuple[int, int]


@dataclass
class Dag:
    """A random graph, told twice: as edges between stages, and as what each single partition reads."""

    counts: list[int] = field(default_factory=list)
    edges: list[list[Edge]] = field(default_factory=list)
    segments: list[np.ndarray] = field(default_factory=list)
    reads: dict[Part, set[Part]] = field(default_factory=dict)

    @property
    def graph(self) -> LineageGraph:
        return LineageGraph(tuple(self.counts), tuple(map(tuple, self.edges)))

    @property
    def parts(self) -> list[Part]:
        return list(self.reads)

    def sizes(self, stage: int) -> np.ndarray | None:
        return self.segments[stage]

    def masks(self, chosen) -> list[np.ndarray]:
        return [np.array([(s, p) in chosen for p in range(n)], dtype=bool) for s, n in enumerate(self.counts)]


def named(masks) -> set[Part]:
    return {(s, int(p)) for s, mask in enumerate(masks) for p in np.flatnonzero(mask)}


def random_dag(rng: random.Random) -> Dag:
    """Stages of one or two branches; a branch scans or reads earlier stages, in up to two ways."""
    dag = Dag()
    for stage in range(rng.randint(2, 5)):
        edges: list[Edge] = []
        reads: dict[int, set[Part]] = {}
        start = 0
        for _ in range(rng.choice([1, 1, 1, 2])):
            length = rng.randint(1, 3)
            choices = [(s, kind) for s in range(stage) for kind in Dependency]
            for source, kind in rng.sample(choices, min(len(choices), rng.randint(0, 2))):
                fits = {Dependency.NARROW: dag.counts[source], Dependency.WIDE: dag.segments[source].shape[1]}
                if not any(e.start == start for e in edges):
                    length = fits.get(kind, length)
                if fits.get(kind, length) == length:
                    edges.append(Edge(source, kind, start, start + length))
            for local in range(length):
                mine = reads.setdefault(start + local, set())
                for edge in edges:
                    if edge.start == start:
                        mine |= read_by(dag, edge, local)
            start += length
        dag.counts.append(start)
        dag.edges.append(edges)
        width = rng.randint(1, 3)
        dag.segments.append(np.array([[rng.choice([0, 5]) for _ in range(width)] for _ in range(start)]))
        dag.reads.update({(stage, p): parents for p, parents in reads.items()})
    return dag


def read_by(dag: Dag, edge: Edge, local: int) -> set[Part]:
    if edge.dependency is Dependency.NARROW:
        return {(edge.source, local)}
    everything = range(dag.counts[edge.source])
    if edge.dependency is Dependency.BROADCAST:
        return {(edge.source, p) for p in everything}
    return {(edge.source, p) for p in everything if dag.segments[edge.source][p, local]}


def is_enough(
    dag: Dag, rerun: set[Part], present: set[Part], needed: set[Part], unfinished: set[Part]
) -> bool:
    """Run what can be run until nothing more can; look whether what must be there is."""
    there, waiting = set(present), rerun | unfinished
    while ready := {part for part in waiting if dag.reads[part] <= there}:
        there |= ready
        waiting -= ready
    return needed | unfinished <= there


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32))
def test_the_plan_is_the_one_smallest_set_that_is_enough(seed):
    rng = random.Random(seed)
    dag = random_dag(rng)
    state = {part: rng.choice(["present", "lost", "lost", "unfinished"]) for part in dag.parts}
    present, unfinished = ({p for p in state if state[p] == kind} for kind in ("present", "unfinished"))
    needed = {part for part in dag.parts if rng.random() < 0.2}
    candidates = [part for part in dag.parts if state[part] == "lost"]
    assume(len(candidates) <= 12)

    masks = map(dag.masks, (present, needed, unfinished))
    plan = plan_recovery(dag.graph, *masks, dag.sizes)
    rerun = named(plan.rerun)

    assert is_enough(dag, rerun, present, needed, unfinished)
    smaller = (set(c) for n in range(len(rerun) + 1) for c in itertools.combinations(candidates, n))
    assert [s for s in smaller if is_enough(dag, s, present, needed, unfinished)] == [rerun]


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_the_order_has_every_input_before_its_reader_and_reads_only_what_is_there(seed):
    rng = random.Random(seed)
    dag = random_dag(rng)
    present = {part for part in dag.parts if rng.random() < 0.5}
    needed = {part for part in dag.parts if rng.random() < 0.3}
    plan = plan_recovery(dag.graph, dag.masks(present), dag.masks(needed), segments=dag.sizes)
    there, read = set(present), set()
    for stage, partitions in plan.steps():
        for partition in partitions.tolist():
            assert dag.reads[stage, partition] <= there
            read |= dag.reads[stage, partition] & present
        there |= {(stage, p) for p in partitions.tolist()}
    assert named(plan.reads(dag.graph, dag.sizes)) == read


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_parents_ancestors_and_dependents_agree_with_walking_every_edge(seed):
    rng = random.Random(seed)
    dag = random_dag(rng)
    graph = dag.graph
    chosen = {part for part in dag.parts if rng.random() < 0.3}
    masks = dag.masks(chosen)
    assert named(graph.parents(masks, dag.sizes)) == set().union(*(dag.reads[p] for p in chosen))
    assert named(graph.ancestors(masks, dag.sizes)) == closure(chosen, dag.reads)
    made = {part: {child for child in dag.parts if part in dag.reads[child]} for part in dag.parts}
    assert named(graph.dependents(masks, dag.sizes)) == closure(chosen, made)


def closure(start: set[Part], step: dict[Part, set[Part]]) -> set[Part]:
    found: set[Part] = set()
    todo = list(start)
    while todo:
        fresh = step[todo.pop()] - found
        found |= fresh
        todo += fresh
    return found


def test_ten_thousand_partitions_on_each_side_of_an_exchange_make_one_edge():
    count = 10_000
    graph = LineageGraph((count, count), ((), (Edge(0, Dependency.WIDE, 0, count),)))
    assert sum(map(len, graph.edges)) == 1
    lost = graph.select(0, range(0, count, 2))
    present = [~lost[0], np.zeros(count, dtype=bool)]
    plan = plan_recovery(graph, present, graph.none(), graph.select(1))
    assert [(stage, len(partitions)) for stage, partitions in plan.steps()] == [(0, count // 2)]
    assert graph.ancestors(graph.select(1, [7]))[0].sum() == count
