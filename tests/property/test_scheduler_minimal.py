"""What the scheduler runs again is the smallest set, by an oracle that knows single partitions only."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.ops.partitioner import RangePartitioner
from headwater.planner.plan import BlockLeaf, BroadcastLeaf, ScanLeaf, leaves_of
from headwater.runtime.scheduler_events import (
    BlocksFound,
    Cause,
    Launch,
    Restore,
    WorkerDraining,
    WorkerJoined,
)

EXAMPLES = int(os.environ.get("HEADWATER_CHAOS_EXAMPLES", "100"))
SEEDS = st.integers(0, 2**48)
thorough = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

Part = tuple[int, int]


def inputs_of(plan, part: Part, lengths, runs: bool = False) -> set[Part]:
    """What one partition reads; ``lengths`` of a partition's segments are None if it has no result.

    One that ``runs`` already was told of the inputs that hold something only.
    """
    stage, found = plan.stages[part[0]], set()
    for leaf, local in leaves_of(stage.operator, part[1]):
        if isinstance(leaf, ScanLeaf):
            continue
        if isinstance(leaf, BlockLeaf):
            if not runs or sum(lengths((leaf.stage, local))):
                found.add((leaf.stage, local))
            continue
        for p in range(plan.stages[leaf.stage].partitions):
            known = lengths((leaf.stage, p))
            if runs and isinstance(leaf, BroadcastLeaf):
                known = [sum(known)] * (local + 1)
            if (isinstance(leaf, BroadcastLeaf) and not runs) or known is None or known[local]:
                found.add((leaf.stage, p))
    return found


def closure(plan, first, there, lengths, samples=lambda part: set(), running=()) -> set[Part]:
    """All that has to run so that ``first`` can, while ``there`` can be read."""
    run, todo = set(), list(first)
    while todo:
        part = todo.pop()
        if part in run:
            continue
        run.add(part)
        todo += (inputs_of(plan, part, lengths, part in running) | samples(part)) - there
    return run


def parts_of(plan) -> list[Part]:
    return [(stage.id, p) for stage in plan.stages for p in range(stage.partitions)]


def start(simulated, rng: random.Random):
    sim = simulated.Simulation(simulated.random_plan(rng), rng, backups=False)
    for number in range(rng.randint(2, 4)):
        for _ in range(rng.randint(1, 2)):
            sim.join(f"n{number}", rng.randint(1, 2))
    return sim


def go(sim, rng: random.Random, steps: int) -> None:
    for _ in range(steps):
        if sim.able():
            sim.answer(rng.choice(sim.able()))


def readable(sim) -> set[Part]:
    """Partitions whose block is on a living node, or whose files are staged."""
    found = {key[:2] for node in sim.nodes.values() for key in node.disk}
    staged = {
        (s.stage.id, p) for s in sim.scheduler.stages if s.stage.sink for p in range(len(s.done)) if s.done[p]
    }
    return found | staged


@thorough
@given(SEEDS)
def test_the_loss_of_one_node_at_any_moment_costs_the_smallest_set(simulated, seed):
    rng = random.Random(seed)
    sim = start(simulated, rng)
    go(sim, rng, rng.randint(0, 30))
    before = set(sim.computed)
    node = rng.choice(sorted(sim.nodes))
    for address in [a for a in sorted(sim.workers) if sim.workers[a].node == node]:
        sim.leave(address, rng.choice([Cause.DIED, Cause.HUNG]))
    sim.late.clear()
    plan, there = sim.plan, readable(sim)
    results = {part: sim.scheduler.stages[part[0]].results[part[1]] for part in parts_of(plan)}

    def lengths(part: Part):
        result = results[part]
        return None if result is None or result.block is None else list(result.block.segment_rows)

    outputs = {part for part in parts_of(plan) if part[0] in plan.outputs.values()}
    unfinished = set(parts_of(plan)) - before
    running = {
        (r.task.stage, p.index)
        for w in sim.workers.values()
        for r in w.runs.values()
        for p in r.task.partitions
    }
    expected = closure(plan, (outputs - there) | unfinished, there, lengths, running=running) & before

    sim.run()
    twice = {part for part, count in Counter(sim.computed).items() if count > 1}
    assert twice == expected
    assert all(count <= 2 for count in Counter(sim.computed).values())
    assert sorted(sim.scheduler.recovery.partitions_rerun) == sorted(expected)
    assert sum(loss.minimum for loss in sim.scheduler.losses.all) == len(expected)
    assert not any(stage.alive.any() for stage in sim.scheduler.stages if not stage.is_output)
    sim.check_outputs()
    sim.check_ledger()


@thorough
@given(SEEDS)
def test_a_run_that_begins_with_results_runs_only_what_outputs_lack(simulated, seed):
    rng = random.Random(seed)
    first = start(simulated, rng)
    plan, results = first.plan, {}
    first.run()
    for stage in plan.stages:  # everything that was ever made
        for p in range(stage.partitions):
            content = simulated.Reference(first).content(stage.id, p)
            results[stage.id, p] = (content, simulated.result_of(stage, (stage.id, p, 7), "n0", content))
    share, known = rng.choice([0.1, 0.5, 0.9]), rng.random() < 0.7
    found = {part for part in results if rng.random() < share}
    staged = {part for part in found if plan.stages[part[0]].sink is not None}
    spoilt = {part for part in found - staged if rng.random() < 0.1}

    sim = simulated.Simulation(plan, rng, backups=False)
    sim.epoch, sim.count, sim.cuts = 1, 10, dict(first.cuts)
    sim.scheduler = type(sim.scheduler)(plan, "run", epoch=1, backups=False)
    fingerprints = {part: content.fingerprint for part, (content, _) in results.items()}
    events: list = []
    for number in range(rng.randint(1, 3)):
        sim.nodes[f"n{number}"] = node = type(first.nodes["n0"])()
        mine = [part for part in sorted(found - staged) if number == part[1] % 3 or number == 0]
        told = []
        for part in mine:
            content = results[part][0]
            if part in spoilt and known:
                content = replace(content, fingerprint="other")
            elif part in spoilt:
                content = replace(content, lengths=(*content.lengths, 1))
            key = (*part, 7)
            node.disk[key] = content
            sim.made.add(key)
            told.append(simulated.result_of(plan.stages[part[0]], key, f"n{number}", content))
        events.append(BlocksFound(f"n{number}", tuple(told)))
    for number in range(len(events)):
        address = f"w{number}"
        sim.workers[address] = type(first.workers["w1"])(f"n{number}", 2)
        events.insert(0, WorkerJoined(address, f"n{number}", 2))
    bounds = {}
    for stage in plan.stages:
        exchange = stage.exchange
        if exchange is not None and exchange.boundaries_from is not None and rng.random() < 0.5:
            bounds[stage.id] = first.scheduler.stages[stage.id].exchange.partitioner.boundaries
    restore = Restore(
        fingerprints if known else {}, {}, tuple((s, results[s, p][1]) for s, p in sorted(staged)), bounds
    )
    there = found - spoilt

    def lengths(part: Part):
        return results[part][0].lengths if part in there else None

    def samples(part: Part):
        exchange = plan.stages[part[0]].exchange
        if exchange is None or not isinstance(exchange.partitioner, RangePartitioner) or part[0] in bounds:
            return set()
        source = exchange.boundaries_from
        return {(source, p) for p in range(plan.stages[source].partitions)}

    outputs = {part for part in results if part[0] in plan.outputs.values()}
    expected = closure(plan, outputs - there, there, lengths, samples)

    joins = len(events) // 2
    sim.feed(*events[:joins], restore, *events[joins:])
    sim.run()
    assert Counter(sim.computed) == Counter(expected)
    assert all(i.task.attempt >= 10_000 for i in sim.log if isinstance(i, Launch))
    sim.check_outputs()
    sim.check_ledger()
    # and what is lost later is made again, boundaries included
    node = rng.choice(sorted(sim.nodes))
    for address in [a for a in sorted(sim.workers) if sim.workers[a].node == node]:
        sim.leave(address)
    sim.join("n9")
    sim.run()
    sim.check_outputs()
    sim.check_ledger()


@thorough
@given(SEEDS)
def test_workers_that_leave_politely_cost_nothing(simulated, seed):
    rng = random.Random(seed)
    sim = start(simulated, rng)
    for _ in range(60):
        go(sim, rng, rng.randint(0, 3))
        idle = [a for a in sorted(sim.workers) if sim.workers[a].draining and not sim.workers[a].runs]
        if idle:
            sim.drained(idle[0])
        elif rng.random() < 0.1:
            address = rng.choice(sorted(sim.workers))
            others = {w.node for w in sim.workers.values() if not w.draining} - {sim.workers[address].node}
            if others and not any(w.draining for w in sim.workers.values()):
                sim.workers[address].draining = True
                sim.feed(WorkerDraining(address))
    sim.run()
    assert all(count == 1 for count in Counter(sim.computed).values())
    assert sim.scheduler.recovery.partitions_rerun == []
    sim.check_outputs()


@thorough
@given(SEEDS)
def test_a_new_dask_scheduler_costs_only_what_ran(simulated, seed):
    rng = random.Random(seed)
    sim = start(simulated, rng)
    for _ in range(rng.randint(1, 3)):
        go(sim, rng, rng.randint(0, 12))
        sim.lose_scheduler(sure=True)
        while sim.surveys:
            sim.survey(sim.surveys.pop(rng.randrange(len(sim.surveys))))
    sim.run()
    assert all(count == 1 for count in Counter(sim.computed).values())
    assert sim.scheduler.recovery.partitions_rerun == []
    assert sim.scheduler.recovery.nodes_lost == []
    sim.check_outputs()
    sim.check_ledger()


@thorough
@given(SEEDS)
def test_a_node_that_returns_at_once_costs_only_what_ran(simulated, seed):
    rng = random.Random(seed)
    sim = start(simulated, rng)
    go(sim, rng, rng.randint(0, 20))
    node = rng.choice(sorted(sim.nodes))
    for address in [a for a in sorted(sim.workers) if sim.workers[a].node == node]:
        sim.leave(address, Cause.UNREACHABLE, keep=True)
    sim.join(node)
    while sim.surveys:
        sim.survey(sim.surveys.pop())
    sim.late.clear()
    sim.run()
    assert all(count == 1 for count in Counter(sim.computed).values())
    sim.check_outputs()
    sim.check_ledger()
