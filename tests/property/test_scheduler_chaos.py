"""The scheduler on a simulated cluster where anything dies at any moment."""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.errors import NonDeterministicError, RunFailedError
from headwater.runtime.scheduler_events import (
    BlocksLost,
    Cause,
    Demand,
    InputsLost,
    OutputTaken,
    Progress,
    TaskFinished,
    WorkerDraining,
)
from headwater.runtime.scheduling.departures import LIMBO_SECONDS

EXAMPLES = int(os.environ.get("HEADWATER_CHAOS_EXAMPLES", "100"))
SEEDS = st.integers(0, 2**48)
chaotic = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


class Chaos:
    """Faults of all kinds, a bounded number of them, at random moments of a run."""

    def __init__(self, simulation, rng: random.Random, faults: int):
        self.sim, self.rng, self.faults = simulation, rng, faults
        self.taken: dict[int, int] = {}

    def step(self) -> None:
        sim, rng = self.sim, self.rng
        if self.faults and rng.random() < 0.2:
            self.faults -= 1
            rng.choice(
                [
                    self.die,
                    self.die,
                    self.scheduler,
                    self.driver,
                    self.drain,
                    self.fill,
                    self.vanish,
                    self.back,
                ]
            )()
            return
        choice = rng.random()
        able = sim.able()
        if choice < 0.08:
            sim.tick(rng.choice([0.1, 1.0, 4.0]))
        elif choice < 0.12 and sim.late:
            sim.feed_stale(TaskFinished(sim.late.pop(rng.randrange(len(sim.late)))))
        elif choice < 0.14 and sim.results:
            sim.feed_stale(TaskFinished(rng.choice(sim.results)))
        elif choice < 0.18:
            names = [run.task.name for worker in sim.workers.values() for run in worker.runs.values()]
            sim.feed(Progress({name: rng.choice([0.0, 0.1, 0.9]) for name in names}))
        elif choice < 0.21:
            self.remind()
        elif choice < 0.3 and len(sim.workers) < 8:
            sim.join(rng.choice(["n0", "n1", f"new{sim.count}", *sim.cut]), rng.randint(1, 2))
        elif able and (choice < 0.9 or not sim.surveys):
            run = rng.choice(able)
            self.sim.answer(run, fetch_fails=rng.random() < 0.1)
        else:
            sim.calm_step()

    def remind(self) -> None:
        """Waiting attempts repeat what they lack."""
        for worker in list(self.sim.workers.values()):
            for run in list(worker.runs.values()):
                if run.waits and not run.cancelled:
                    places = [run.place[first] for first in run.lacks]
                    lost = tuple(sorted({(s.stage, s.partition, s.attempt) for s in places}))
                    self.sim.feed(InputsLost(run.task.stage, run.task.id, run.task.attempt, lost))

    def die(self) -> None:
        """A process, or a node with all its processes, which may come back."""
        sim, rng = self.sim, self.rng
        if not sim.workers:
            return
        victim = rng.choice(sorted(sim.workers))
        cause = rng.choice([Cause.DIED, Cause.DIED, Cause.HUNG, Cause.UNREACHABLE])
        node = sim.workers[victim].node
        whole, keep = rng.random() < 0.5, rng.random() < 0.5
        for address in sorted(sim.workers) if whole else [victim]:
            if sim.workers[address].node == node:
                sim.leave(address, cause, keep)

    def back(self) -> None:
        if self.sim.cut:
            self.sim.join(self.rng.choice(sorted(self.sim.cut)))

    def scheduler(self) -> None:
        self.sim.lose_scheduler()

    def driver(self) -> None:
        if not self.sim.scheduler._departures.limbo and not self.taken:
            self.sim.lose_driver()

    def drain(self) -> None:
        sim = self.sim
        if sim.workers:
            address = self.rng.choice(sorted(sim.workers))
            sim.workers[address].draining = True
            sim.feed(WorkerDraining(address))

    def fill(self) -> None:
        if len(self.sim.nodes) > 1:
            self.sim.nodes[self.rng.choice(sorted(self.sim.nodes))].full = True

    def vanish(self) -> None:
        """A block's file is gone, and nobody knows."""
        for node in self.sim.nodes.values():
            if node.disk and self.rng.random() < 0.7:
                del node.disk[self.rng.choice(sorted(node.disk))]
                return

    def stream(self) -> None:
        """The caller asks for more of a streamed output, and takes what is there."""
        for stage_id, at in list(self.taken.items()):
            stage = self.sim.scheduler.stages[stage_id]
            if at < stage.stage.partitions:
                if stage.done[at] and stage.alive[at]:
                    self.sim.feed(OutputTaken(stage_id, at))
                    self.taken[stage_id] = at + 1
                elif stage.limit <= at:
                    self.sim.feed(Demand(stage_id, at + self.rng.randint(1, 3)))


def chaos_run(simulated, seed: int, wild: bool, stream: bool = False):
    rng = random.Random(seed)
    plan = simulated.random_plan(rng, wild)
    streamed = [stage for stage in plan.outputs.values() if plan.stages[stage].sink is None][:1]
    streamed = [stage for stage in streamed if stream and not any(stage in s.parents for s in plan.stages)]
    sim = simulated.Simulation(plan, rng, streamed)
    chaos = Chaos(sim, rng, rng.randint(0, 8))
    chaos.taken = dict.fromkeys(streamed, 0)
    for number in range(rng.randint(1, 3)):
        for _ in range(rng.randint(1, 2)):
            sim.join(f"n{number}", rng.randint(1, 2))
    for _ in range(400):
        if sim.error is not None or (sim.finished and not chaos.faults):
            break
        chaos.step()
        if sim.error is None:
            chaos.stream()
    for _ in range(200):
        if not chaos.taken or sim.error is not None or sim.finished:
            break
        chaos.stream()
        if sim.error is None and (sim.able() or sim.surveys):
            sim.calm_step()
    if sim.error is None:
        sim.run()
    # what vanished unseen is found missing by whoever reads the outputs; here nobody does
    return sim, chaos


def check(sim, chaos) -> None:
    if sim.error is not None:
        text = str(sim.error)
        if isinstance(sim.error, NonDeterministicError):
            assert any(chaos.taken.values()), text
        else:
            assert isinstance(sim.error, RunFailedError | OSError | RuntimeError), text
            unlucky = ("workers down", "inputs could not be read", "full", "attempts failed")
            assert any(word in text for word in unlucky), text
        return
    if not sim.workers:
        sim.join("last")
    sim.tick(LIMBO_SECONDS + 1)
    sim.run()
    if sim.error is not None:
        return check(sim, chaos)
    for stage_id in sim.plan.outputs.values():  # the caller reads what is there
        run = sim.scheduler.stages[stage_id]
        for _ in range(10):
            blocks = [b for p in range(run.stage.partitions) if not run.taken[p] and (b := run.block(p))]
            lost = tuple(
                key for b in blocks
                if (key := (b.stage, b.partition, b.attempt)) not in sim.nodes[b.node].disk
            )  # fmt: skip
            if not lost:
                break
            sim.feed(BlocksLost(lost))
            sim.run()
            if sim.error is not None:
                return check(sim, chaos)
    sim.check_outputs()
    sim.check_ledger()
    return None


@chaotic
@given(SEEDS)
def test_whatever_dies_the_run_ends_with_the_right_outputs(simulated, seed):
    check(*chaos_run(simulated, seed, wild=False))


@chaotic
@given(SEEDS)
def test_outputs_are_of_one_version_of_what_varies(simulated, seed):
    check(*chaos_run(simulated, seed, wild=True))


@chaotic
@given(SEEDS)
def test_a_streamed_output_comes_through(simulated, seed):
    check(*chaos_run(simulated, seed, wild=False, stream=True))
