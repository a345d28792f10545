"""A simulated cluster for the scheduler: nodes with disks, workers, attempts, and everything that can go wrong.

Nothing is computed. The content of a partition is named by what it was made from, and by a draw of its own
where an operator is declared deterministic=False; its fingerprint is a digest of that name. So at the end
it can be told whether all outputs were made of one version of everything.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from hashlib import sha1
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest

from headwater.lineage.history import History
from headwater.ops.kernel import Kernel
from headwater.ops.map_batches import MapBatchesKernel
from headwater.ops.partitioner import HashPartitioner, KeySample, RangePartitioner
from headwater.ops.sink import Sink, StagedFile
from headwater.ops.sort import SortKey
from headwater.ops.source import Source, Split
from headwater.planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    Exchange,
    PhysicalPlan,
    ScanLeaf,
    ShuffleLeaf,
    Stage,
    Step,
    UnionStep,
    all_kernels,
    leaves_of,
)
from headwater.runtime.resumption import plan_record, restore
from headwater.runtime.scheduler import Scheduler
from headwater.runtime.scheduler_events import (
    BlocksFound,
    BlocksMoved,
    Cancel,
    Cause,
    Failed,
    FailureKind,
    Finished,
    InputsLost,
    Launch,
    Record,
    Release,
    Relocate,
    StageReady,
    Survey,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerJoined,
    WorkerLeft,
)
from headwater.runtime.scheduling.departures import LIMBO_SECONDS
from headwater.runtime.task import Block, Metrics, PartitionResult, Segment, Task, TaskResult

SCHEMA = pa.schema([("x", pa.int64())])
MB = 1 << 20
KEYS = (SortKey("x"),)

Key = tuple[int, int, int]  # stage, partition, attempt


def random_plan(rng: random.Random, wild: bool = False) -> PhysicalPlan:
    """Stages that scan, map, reduce, broadcast and unite; hash and range exchanges; ``wild`` ones vary."""
    stages: list[Stage] = []
    slots = iter(range(1000))

    def scan(count: int):
        slot = next(slots)
        splits = tuple(Split(i, None, rng.choice([1, 40]) * MB, ()) for i in range(count))
        return ScanLeaf(slot, Source(), ("x",), None, None, SCHEMA), {slot: splits}

    for number in range(rng.randint(2, 5)):
        splits: dict = {}
        exchanged = [s for s in stages if s.exchange is not None]
        kind = rng.choice(["scan", "narrow", "wide", "wide", "broadcast", "union"]) if stages else "scan"
        if kind == "wide" and exchanged:
            source = rng.choice(exchanged)
            count, leaf = source.exchange.count, ShuffleLeaf(next(slots), source.id, SCHEMA)
        elif kind in ("narrow", "broadcast", "union") and stages:
            source = rng.choice(stages)
            count, leaf = source.partitions, BlockLeaf(next(slots), source.id, SCHEMA)
        else:
            count = rng.randint(1, 4)
            leaf, splits = scan(count)
        operator = Step(Kernel(), (leaf,), SCHEMA)
        if kind == "broadcast" and stages:
            small = BroadcastLeaf(next(slots), rng.choice(stages).id, SCHEMA)
            operator = Step(Kernel(), (leaf, small), SCHEMA)
        if kind == "union":
            more = rng.randint(1, 2)
            other, more_splits = scan(more)
            operator = UnionStep(((operator, count), (other, more)), SCHEMA)
            count, splits = count + more, {**splits, **more_splits}
        if wild and rng.random() < 0.4:
            vary = MapBatchesKernel(_vary, SCHEMA, "numpy", None, False, "vary", False)
            operator = Step(vary, (operator,), SCHEMA)
        exchange = None
        if rng.random() < 0.6:
            exchange = Exchange(HashPartitioner(("x",), rng.randint(1, 4)))
            sampled = [s.id for s in stages if s.sample]
            if sampled and rng.random() < 0.7:
                exchange = Exchange(
                    RangePartitioner(KEYS, exchange.count), boundaries_from=rng.choice(sampled)
                )
        sample = KEYS if rng.random() < 0.3 else ()
        stages.append(
            Stage(number, f"k{number}", kind, operator, count, SCHEMA, splits, exchange, None, sample)
        )
    read: set[int] = set()
    for stage in reversed(stages):  # those that nobody reads are outputs, which have no exchange
        if stage.id not in read:
            stages[stage.id] = replace(stage, exchange=None)
        read.update(stages[stage.id].parents)
    outputs = {}
    for stage in list(stages):
        if stage.id not in read or (stage.exchange is None and rng.random() < 0.2):
            sink = StagingSink() if stage.id not in read and rng.random() < 0.3 else None
            stages[stage.id] = replace(stage, exchange=None, sink=sink)
            outputs[f"out{stage.id}"] = stage.id
    return PhysicalPlan(tuple(stages), outputs)


class StagingSink(Sink):
    """Loses nothing that was staged."""

    def is_staged(self, run, file):
        return True


def _vary(batch):
    return batch


def varies(stage: Stage) -> bool:
    return any(isinstance(k, MapBatchesKernel) and not k.deterministic for k in all_kernels(stage.operator))


@dataclass(frozen=True)
class Content:
    """What a partition holds: the version drawn for it, how its block is cut, and along which boundaries."""

    fingerprint: str
    version: int
    lengths: tuple[int, ...]
    cut: str = ""

    @property
    def name(self) -> str:
        """What a reader of a segment reads."""
        return self.fingerprint + self.cut


def cut_of(exchange: Exchange | None) -> str:
    boundaries = getattr(exchange and exchange.partitioner, "boundaries", None)
    return "" if boundaries is None else str(boundaries["x"].to_pylist())


def content_of(stage: Stage, partition: int, version: int, inputs: list, cut: str = "") -> Content:
    name = repr((stage.id, partition, version, sorted(inputs)))
    fingerprint = sha1(name.encode()).hexdigest()[:12]
    count = stage.exchange.count if stage.exchange else 1
    lengths = (
        0 if crc32(f"{fingerprint}/{i}".encode()) % 3 == 0 else 1000 + crc32(fingerprint.encode()) % 97
        for i in range(count)
    )
    return Content(fingerprint, version, tuple(lengths), cut)


@dataclass
class Node:
    """A machine: its disk holds blocks."""

    disk: dict[Key, Content] = field(default_factory=dict)
    full: bool = False


@dataclass
class Run:
    """An attempt on a worker."""

    task: Task
    worker: str
    #: what it was told first, to where that is now
    place: dict[Segment, Segment] = field(default_factory=dict)
    got: dict[Segment, Content] = field(default_factory=dict)
    lacks: set[Segment] = field(default_factory=set)
    waits: bool = False
    seceded: bool = False
    cancelled: bool = False


@dataclass
class Worker:
    node: str
    threads: int
    runs: dict[str, Run] = field(default_factory=dict)
    draining: bool = False

    def able(self) -> list[Run]:
        """Attempts that a thread runs: in the order of launch; who waited once has a thread of its own."""
        free, found = self.threads, []
        for run in self.runs.values():
            if run.seceded or free > 0:
                found.append(run)
            free -= not run.seceded
        return [run for run in found if not run.waits or run.cancelled]


class Simulation:
    """A run of a plan on nodes that fail, with one scheduler after the other.

    Checks at every step that nothing is read that was never made or was released, nothing is
    released twice, no attempt name is used twice, and nothing starts where it must not.
    """

    def __init__(self, plan: PhysicalPlan, rng: random.Random, streamed=(), backups: bool = True):
        self.plan, self.rng = plan, rng
        self.nodes: dict[str, Node] = {}
        self.cut: dict[str, Node] = {}
        self.workers: dict[str, Worker] = {}
        self.scheduler = Scheduler(plan, "run", streamed=streamed, backups=backups)
        self.log: list = []
        self.journal: list = [plan_record(plan, self.scheduler.lineage)]
        self.names: set[str] = set()
        self.contents: dict[str, Content] = {}
        #: boundaries that workers were told, by stage
        self.cuts: dict[int, str] = {}
        self.released: set[tuple[Key, str]] = set()
        #: blocks that somebody said could not be read; they may be deleted while others still could
        self.reported: set[Key] = set()
        self.made: set[Key] = set()
        self.computed: list[tuple[int, int]] = []
        self.surveys: list[str] = []
        self.late: list[TaskResult] = []
        self.results: list[TaskResult] = []
        #: whether what is fed now comes late, or for the second time
        self.stale = False
        self.error: BaseException | None = None
        self.finished = False
        self.now = 0.0
        self.epoch = 0
        self.count = 0

    # -- the scheduler's side -------------------------------------------------------------------

    def feed(self, *events):
        self.reported.update(key for event in events for key in getattr(event, "lost", ()))
        instructions = self.scheduler.handle(*events)
        for instruction in instructions:
            self.log.append(instruction)
            self._obey(instruction)
        if self.error is None:
            assert self.finished == self.outputs_there() or self.scheduler._departures.limbo, (
                "Finished isn't when it is"
            )
        return instructions

    def _obey(self, instruction) -> None:
        if isinstance(instruction, Launch):
            self._launch(instruction)
        elif isinstance(instruction, Cancel):
            worker = self.workers.get(instruction.worker)
            if worker is not None and instruction.name in worker.runs:
                worker.runs[instruction.name].cancelled = True
        elif isinstance(instruction, Release):
            for block in instruction.blocks:
                key = (block.stage, block.partition, block.attempt)
                node = self.nodes.get(block.node)
                there = node is not None and key in node.disk
                twice = not there and (key, block.node) in self.released
                assert not twice or self.stale, f"{key} is released twice"
                self.released.add((key, block.node))
                if self.stale:
                    self.reported.add(key)
                if there:
                    del node.disk[key]
                    node.full = False
        elif isinstance(instruction, Relocate):
            self._relocate(instruction)
        elif isinstance(instruction, StageReady):
            self.cuts[instruction.program.stage] = cut_of(instruction.program.exchange)
        elif isinstance(instruction, Survey):
            self.surveys.append(instruction.node)
        elif isinstance(instruction, Failed):
            self.error = instruction.error
        elif isinstance(instruction, Finished):
            self.finished = True
        elif isinstance(instruction, Record):
            self.journal += json.loads(json.dumps(instruction.records))
            if instruction.records[0][0] in ("rerun", "rolled back"):
                self.finished = False

    def _launch(self, launch: Launch) -> None:
        task, worker = launch.task, self.workers[launch.worker]
        assert not worker.draining, "a launch on a draining worker"
        assert worker.node not in self.scheduler.placement.full, "a launch on a full node"
        assert task.name not in self.names, "an attempt's name is used twice"
        assert task.attempt >= self.epoch * 10_000
        self.names.add(task.name)
        same = [r for w in self.workers.values() for r in w.runs.values() if not r.cancelled]
        for other in same:
            common = {p.index for p in other.task.partitions} & {p.index for p in task.partitions}
            assert other.task.stage != task.stage or not common or other.task.id == task.id, "two tasks"
        run = Run(task, launch.worker)
        for segment in told(task):
            self._check_place(segment)
            run.place[segment] = segment
        worker.runs[task.name] = run

    def _check_place(self, segment: Segment) -> None:
        key = (segment.stage, segment.partition, segment.attempt)
        assert key in self.made, f"{key} was never made"
        node = self.nodes.get(segment.node)
        assert node is not None, f"{key} is on {segment.node}, which is gone"
        there = key in node.disk
        assert there or (key, segment.node) not in self.released, f"{key} was released"

    def _relocate(self, instruction: Relocate) -> None:
        run = self.workers[instruction.worker].runs[instruction.name]
        assert run.waits
        assert run.lacks <= set(instruction.segments), "not all that it lacks"
        for old, new in instruction.segments.items():
            assert old in run.place
            assert (old.stage, old.partition, old.length, old.rows) == (
                new.stage, new.partition, new.length, new.rows
            )  # fmt: skip
            self._check_place(new)
            assert new.node in instruction.nodes
            run.place[old] = new
        run.waits, run.lacks = False, set()

    def feed_stale(self, *events):
        self.stale = True
        self.feed(*events)
        self.stale = False

    # -- the cluster's side ---------------------------------------------------------------------

    def join(self, node: str, threads: int = 1) -> str:
        """A worker of a node comes; return its address."""
        self.count += 1
        address = f"w{self.count}"
        if node in self.cut:
            self.nodes[node] = self.cut.pop(node)
        self.nodes.setdefault(node, Node())
        self.workers[address] = Worker(node, threads)
        self.feed(WorkerJoined(address, node, threads, host=node))
        return address

    def leave(self, address: str, cause: Cause = Cause.DIED, keep: bool = False) -> None:
        """A worker goes; with the last one of a node, the node goes, too: its disk is kept if it may return."""
        worker = self.workers.pop(address)
        for run in worker.runs.values():
            if not run.cancelled and self.rng.random() < 0.3 and not self.missing(run):
                self.late.append(self.write(run, worker))
        if all(other.node != worker.node for other in self.workers.values()):
            node = self.nodes.pop(worker.node)
            if keep:
                self.cut[worker.node] = node
        self.feed(WorkerLeft(address, cause))

    def missing(self, run: Run) -> list[Segment]:
        """What an attempt still has to read and can't."""
        found = []
        for first, segment in run.place.items():
            if first in run.got:
                continue
            node = self.nodes.get(segment.node)
            key = (segment.stage, segment.partition, segment.attempt)
            if node is not None and key in node.disk:
                run.got[first] = node.disk[key]
            else:
                fair = run.cancelled or key in self.reported or (key, segment.node) not in self.released
                assert fair, "an input was released"
                found.append(first)
        return found

    def write(self, run: Run, worker: Worker) -> TaskResult:
        """Leave the blocks of an attempt that has read everything."""
        task, stage = run.task, self.plan.stages[run.task.stage]
        node, done = self.nodes[worker.node], []
        for item in task.partitions:
            segments = [s for slot in item.slots.values() if isinstance(slot, tuple) for s in slot]
            mine = {leaf.slot for leaf, _ in leaves_of(stage.operator, item.index)}
            segments += [s for slot, given in task.broadcast.items() if slot in mine for s in given]
            inputs = [(s.stage, s.partition, run.got[s].name) for s in segments]
            version = self.rng.randrange(3) if varies(stage) else 0
            content = content_of(stage, item.index, version, inputs, self.cuts.get(stage.id, ""))
            self.contents[content.fingerprint] = content
            key = (stage.id, item.index, task.attempt)
            if stage.sink is None:
                self.made.add(key)
                node.disk[key] = content
            done.append(result_of(stage, key, worker.node, content))
        metrics = Metrics(seconds=self.rng.choice([0.01, 0.5, 3.0]))
        return TaskResult(stage.id, task.id, task.attempt, worker.node, run.worker, tuple(done), metrics)

    def answer(self, run: Run, fetch_fails: bool = False) -> None:
        """Let an attempt go on: to its result, or to what it lacks."""
        worker, task = self.workers[run.worker], run.task
        node = self.nodes[worker.node]

        def failed(kind: FailureKind, error: Exception, lost=()) -> None:
            del worker.runs[task.name]
            self.feed(TaskFailed(task.stage, task.id, task.attempt, run.worker, kind, error, lost))

        if run.cancelled and self.rng.random() < 0.7:
            return failed(FailureKind.OTHER, RuntimeError("cancelled"))
        lost = [] if run.cancelled and run.waits else self.missing(run)
        if run.cancelled and (run.waits or lost):
            return failed(FailureKind.OTHER, RuntimeError("cancelled"))
        if lost:
            places = (run.place[first] for first in lost)
            keys = tuple(dict.fromkeys((s.stage, s.partition, s.attempt) for s in places))
            if fetch_fails:
                return failed(FailureKind.FETCH, OSError("gone"), keys)
            run.waits = run.seceded = True
            run.lacks = set(lost)
            self.feed(InputsLost(task.stage, task.id, task.attempt, keys))
            return None
        if node.full and self.plan.stages[task.stage].sink is None:
            return failed(FailureKind.DISK, OSError("full"))
        result = self.write(run, worker)
        del worker.runs[task.name]
        self.results.append(result)
        known = self.scheduler._state.attempts.get((task.id, task.attempt))
        if known is not None and not known.stopped:
            self.computed += [(task.stage, p.index) for p in result.partitions]
        self.feed(TaskFinished(result))
        return None

    def tick(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
        self.feed(Tick(self.now))

    def survey(self, node: str) -> None:
        """A node tells what it has."""
        found = self.found(node)
        if found is not None:
            self.feed(found)

    def found(self, name: str) -> BlocksFound | None:
        node = self.nodes.get(name)
        if node is None:
            return None
        pairs = sorted(node.disk.items(), key=lambda pair: pair[0])
        self.released -= {(key, name) for key, _ in pairs}  # it was told while the node was away
        results = (result_of(self.plan.stages[key[0]], key, name, content) for key, content in pairs)
        return BlocksFound(name, tuple(results))

    def drained(self, address: str, whole: bool = True) -> None:
        """A worker that has finished what it ran hands over, and leaves."""
        worker = self.workers[address]
        last = sum(w.node == worker.node for w in self.workers.values()) == 1
        others = sorted({w.node for w in self.workers.values()} - {worker.node})
        if last and others:
            disk, target = self.nodes[worker.node].disk, self.rng.choice(others)
            parts = tuple(sorted(key for key in disk if whole or self.rng.random() < 0.7))
            for key in parts:
                self.nodes[target].disk[key] = disk[key]
            self.feed(BlocksMoved(worker.node, target, parts))
        self.leave(address, Cause.LEFT)

    def lose_scheduler(self, sure: bool = False) -> None:
        """The Dask scheduler dies; its nodes come to the new one, or not, or without some blocks."""
        before = {worker.node: worker.threads for worker in self.workers.values()}
        events = []
        for address in sorted(self.workers):
            worker = self.workers.pop(address)
            for run in worker.runs.values():
                if self.rng.random() < 0.3 and not run.waits and not self.missing(run):
                    self.write(run, worker)
            events.append(WorkerLeft(address, Cause.SCHEDULER))
        self.cut.update(self.nodes)
        self.nodes.clear()
        self.feed(*events)
        for node, threads in self.rng.sample(sorted(before.items()), len(before)):
            if sure or self.rng.random() < 0.8:
                for key in [k for k in self.cut[node].disk if not sure and self.rng.random() < 0.1]:
                    del self.cut[node].disk[key]
                self.join(node, threads)
            else:
                self.cut.pop(node)

    def lose_driver(self) -> None:
        """The driver dies; the next one knows the journal, and what nodes have."""
        for worker in self.workers.values():
            for run in worker.runs.values():
                if self.rng.random() < 0.3 and not run.cancelled and not run.waits and not self.missing(run):
                    self.write(run, worker)
            worker.runs.clear()
            worker.draining = False
        self.epoch += 1
        self.late.clear()
        self.surveys.clear()
        self.results.clear()
        self.finished = False
        self.scheduler = Scheduler(self.plan, "run", epoch=self.epoch)
        joined = [WorkerJoined(a, w.node, w.threads, w.node) for a, w in sorted(self.workers.items())]
        found = [self.found(node) for node in sorted(self.nodes)]
        past = History(self.journal).restore()
        self.journal.append(["resumed", {"epoch": self.epoch}])
        self.feed(*joined, restore(self.plan, "run", past), *found)

    # -- what must hold in the end --------------------------------------------------------------

    def able(self) -> list[Run]:
        return [run for address in sorted(self.workers) for run in self.workers[address].able()]

    def outputs_there(self) -> bool:
        """Whether each partition of each output is done, by what the scheduler was told."""
        stages = [self.scheduler.stages[stage] for stage in self.plan.outputs.values()]
        return all((stage.done & (stage.alive | stage.taken)).all() for stage in stages)

    def run(self, most: int = 5000) -> None:
        """Go on without faults until the run ends, or nothing happens any more."""
        for _ in range(most):
            if self.error is not None or (self.finished and not self.able()):
                return
            self.calm_step()
        raise AssertionError("the run doesn't end")

    def calm_step(self) -> None:
        if self.surveys:
            self.survey(self.surveys.pop(0))
            return
        draining = [a for a in sorted(self.workers) if self.workers[a].draining and not self.workers[a].runs]
        if draining:
            self.drained(draining[0])
            return
        if all(worker.draining for worker in self.workers.values()):
            self.join(f"n{self.count + 100}", 1)
            return
        able = self.able()
        if able:
            self.answer(self.rng.choice(able))
            return
        self.tick(LIMBO_SECONDS + 1)
        waits = (
            self.error is not None
            or self.finished
            or any(s.limit < len(s.done) for s in self.scheduler.stages)
        )
        if not waits and not self.able() and not self.surveys:
            raise AssertionError("nothing runs, and nothing will")

    def check_outputs(self) -> None:
        """Every output is on a disk, and all are what one version of everything gives."""
        reference = Reference(self)
        for stage_id in self.plan.outputs.values():
            stage = self.scheduler.stages[stage_id]
            for partition in range(stage.stage.partitions):
                result = stage.results[partition]
                if stage.taken[partition]:
                    continue
                assert result is not None
                if result.block is not None:
                    key = (stage_id, partition, result.block.attempt)
                    assert key in self.nodes[result.block.node].disk
                expected = reference.content(stage_id, partition).fingerprint
                assert result.fingerprint == expected, f"{stage_id}/{partition} is of mixed versions"

    def check_ledger(self) -> None:
        """What had to be made again was, or came back."""
        losses = self.scheduler.losses.all
        total = sum(loss.minimum for loss in losses)
        assert sum(loss.rerun + loss.returned for loss in losses) == total
        assert all(loss.recovered is not None for loss in losses)


class Reference:
    """What each partition is, computed without any fault from the versions that the scheduler counts."""

    def __init__(self, simulation: Simulation):
        self.plan = simulation.plan
        self.stages = simulation.scheduler.stages
        self.contents, self.cuts = simulation.contents, simulation.cuts
        self._known: dict[tuple[int, int], Content] = {}

    def content(self, stage_id: int, partition: int) -> Content:
        if (stage_id, partition) not in self._known:
            stage = self.plan.stages[stage_id]
            version = 0
            if varies(stage):
                version = self.contents[self.stages[stage_id].fingerprints[partition]].version
            inputs = [(s, p, self.content(s, p).name) for s, p in self.reads(stage, partition)]
            cut = cut_of(self.stages[stage_id].exchange) or self.cuts.get(stage_id, "")
            self._known[stage_id, partition] = content_of(stage, partition, version, inputs, cut)
        return self._known[stage_id, partition]

    def reads(self, stage: Stage, partition: int):
        for leaf, local in leaves_of(stage.operator, partition):
            if isinstance(leaf, BlockLeaf):
                if sum(self.content(leaf.stage, local).lengths):
                    yield leaf.stage, local
            elif isinstance(leaf, BroadcastLeaf | ShuffleLeaf):
                for p in range(self.plan.stages[leaf.stage].partitions):
                    lengths = self.content(leaf.stage, p).lengths
                    if sum(lengths) if isinstance(leaf, BroadcastLeaf) else lengths[local]:
                        yield leaf.stage, p


def told(task: Task) -> list[Segment]:
    slots = [slot for item in task.partitions for slot in item.slots.values() if isinstance(slot, tuple)]
    return [segment for slot in (*slots, *task.broadcast.values()) for segment in slot]


def result_of(stage: Stage, key: Key, node: str, content: Content) -> PartitionResult:
    """What a task reports of a partition, or a block says of itself."""
    _, partition, attempt = key
    rows = np.array([length // 10 for length in content.lengths])
    if stage.sink is not None:
        name = f"{partition}-{attempt}"
        return PartitionResult(
            partition, 1, content.fingerprint, None, (StagedFile(name, f"{partition}", 1, 9),)
        )
    offsets = np.cumsum([8, *content.lengths])
    path = "s{}-p{}-a{}".format(*key)
    block = Block(*key, node, path, offsets, rows, int(offsets[-1]), content.fingerprint)
    sample = (
        KeySample(int(rows.sum()), pa.table({"x": [crc32(content.fingerprint.encode()) % 1000]}))
        if stage.sample
        else None
    )
    return PartitionResult(partition, int(rows.sum()), content.fingerprint, block, (), sample)


@pytest.fixture(scope="session")
def simulated():
    """The simulated cluster and random plans for it."""
    return SimpleNamespace(Simulation=Simulation, random_plan=random_plan, Reference=Reference, told=told,
                           result_of=result_of, varies=varies, content_of=content_of)  # fmt: skip
