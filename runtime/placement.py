"""Placement: which worker gets which task next. Locality first, work for idle threads second. Pure.

A task waits in the queue of the node that holds most of its input. A worker takes from its node's
queue, then from tasks without preference. A worker with an idle thread steals from another node's
queue if moving the bytes costs less than the wait there: estimated from sizes, so no timers.

Tasks that need a device wait apart, for the workers that have one. Those take other tasks as well, after the
workers that have none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from .task import Task
from .task_queue import TaskLine, TaskQueue

#: bytes per second that a worker fetches from another node
BANDWIDTH = 400e6
#: entries of a queue that a thief looks at
STEAL_SCAN = 64
#: a worker that takes so many times longer than others is slow: it gets nothing that others would do sooner
SLOW = 2.0


@dataclass(eq=False)
class TaskRun:
    """A task through all its attempts.

    Attributes:
        stage, id, partitions: what it computes.
        attempts: those that live, by number; more than one if a backup was started.
        deaths: workers that died while it alone ran there; those count against it.
        company: workers that died while it and others ran there; any of them may be to blame.
        fetch_failures: attempts that could not read an input.
        refusals: attempts that failed for reasons of the system.
        culprits: addresses of the workers whose death counts against it.
        avoid: ids of the nodes on which workers died with it.
        seconds: how long it will run, estimated.
        weight: bytes of its input, and what its partitions cost on top in bytes.
        local: bytes of its input on each node that has some.
        long: whether it takes a thread for long, as a training does.
        device: "gpu" if it runs only on a worker that has one, else "cpu".
    """

    stage: int
    id: int
    partitions: np.ndarray
    attempts: dict[int, Attempt] = field(default_factory=dict)
    deaths: int = 0
    company: int = 0
    fetch_failures: int = 0
    refusals: int = 0
    culprits: list[str] = field(default_factory=list)
    avoid: set[str] = field(default_factory=set)
    seconds: float = 0.005
    weight: float = 1.0
    local: dict[str, float] = field(default_factory=dict)
    long: bool = False
    device: str = "cpu"

    @property
    def priority(self) -> tuple[int, int, int]:
        """Earlier stages first, as others wait for them; then the order of partitions."""
        return (self.stage, int(self.partitions[0]), self.id)

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills its workers; then it runs alone, so that no neighbour is blamed."""
        return self.company > 0 or self.deaths >= 2


@dataclass(eq=False)
class Attempt:
    """One try of a task on one worker.

    Attributes:
        task: which.
        number: unique among the tries of its partitions, growing.
        worker: address of the worker that has it.
        record: what the worker was told.
        started: when it was launched, in seconds of the run.
        backup: whether another try was under way when it started.
        share: of its input, 0 to 1, that it has read.
        samples: (time, share) of late, oldest first.
        lacks: (stage, partition) of the inputs that it waits for, having given its thread back.
        seceded: whether it has ever waited so; it runs on a thread of its own since.
        places: node of each (stage, partition) whose place it was told again.
        stopped: whether it was cancelled; it holds its thread until it answers.
    """

    task: TaskRun
    number: int
    worker: str
    record: Task
    started: float = 0.0
    backup: bool = False
    share: float = 0.0
    samples: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=32))
    lacks: frozenset[tuple[int, int]] = frozenset()
    seceded: bool = False
    places: dict[tuple[int, int], str] = field(default_factory=dict)
    stopped: bool = False

    def told(self, parts: Collection[tuple[int, int]]) -> dict[tuple[int, int], str]:
        """Say on which node it was told, last, that each of these blocks is."""
        slots = [slot for item in self.record.partitions for slot in item.slots.values()]
        given = [
            s for slot in (*slots, *self.record.broadcast.values()) if isinstance(slot, tuple) for s in slot
        ]
        first = {(s.stage, s.partition): s.node for s in given if (s.stage, s.partition) in parts}
        return {**first, **self.places}


@dataclass(eq=False)
class WorkerSlots:
    """A living worker and the attempts it has, by task id and number, in the order of their launch.

    Attributes:
        draining: whether it is about to leave, and takes nothing new.
        pace: seconds it takes for what others do in one.
        gpu: whether it has a GPU.
    """

    address: str
    node: str
    threads: int
    host: str
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    draining: bool = False
    pace: float = 1.0
    gpu: bool = False

    def has(self, device: str) -> bool:
        """Whether tasks of a device, "cpu" or "gpu", can run here."""
        return self.gpu or device != "gpu"

    @property
    def occupied(self) -> int:
        """Attempts that have a thread or wait for one."""
        return sum(not attempt.lacks for attempt in self.attempts.values())

    @property
    def idle(self) -> bool:
        """Whether a thread has nothing to do."""
        return self.occupied < self.threads

    @property
    def load(self) -> tuple[bool, bool, float, float, str]:
        """Idle ones first, of these those without a GPU; then by attempts per thread and pace.

        The address breaks ties.
        """
        return (not self.idle, self.gpu, self.occupied / self.threads, self.pace, self.address)

    @property
    def slow(self) -> bool:
        return self.pace >= SLOW

    @property
    def open(self) -> bool:
        """Whether it takes another task: one more than threads, so that none waits for the driver.

        Nothing is put behind what takes long, or on a slow worker: another one may be idle sooner.
        """
        keeps = self.slow or any(attempt.task.long for attempt in self.attempts.values())
        room = self.threads if keeps else self.threads + 1
        alone = any(a.task.suspect and not a.stopped and not a.lacks for a in self.attempts.values())
        return not self.draining and self.occupied < room and not alone

    def executing(self) -> list[Attempt]:
        """The attempts that run: threads take them in the order of their launch, and leave those that wait."""
        begun, free = [], self.threads
        for attempt in self.attempts.values():
            if not attempt.lacks and (attempt.seceded or free > 0):
                begun.append(attempt)
            free -= not attempt.seceded
        return begun


class Placement:
    """Living workers, and the tasks that wait for them."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerSlots] = {}
        #: ids of nodes whose scratch folder has no room
        self.full: set[str] = set()
        self._lines = {device: TaskLine(device) for device in ("gpu", "cpu")}

    @property
    def threads(self) -> int:
        """Worker threads there are."""
        return self.threads_for("cpu")

    def threads_for(self, device: str) -> int:
        """Threads of the workers on which tasks of a device, "cpu" or "gpu", can run."""
        return sum(worker.threads for worker in self.workers.values() if worker.has(device))

    def nodes(self) -> dict[str, tuple[str, ...]]:
        """Addresses of the living workers of each node, both in order."""
        found: dict[str, list[str]] = {}
        for address in sorted(self.workers):
            found.setdefault(self.workers[address].node, []).append(address)
        return {node: tuple(found[node]) for node in sorted(found)}

    def hosts(self) -> dict[str, list[str]]:
        """Ids of the nodes on each host."""
        pairs = sorted({(worker.host, worker.node) for worker in self.workers.values() if worker.host})
        found: dict[str, list[str]] = {}
        for host, node in pairs:
            found.setdefault(host, []).append(node)
        return found

    def join(self, worker: WorkerSlots) -> None:
        """A worker can take tasks."""
        self.workers[worker.address] = worker

    def leave(self, address: str) -> WorkerSlots | None:
        """A worker is gone; return it with the tasks it had."""
        return self.workers.pop(address, None)

    def add(self, task: TaskRun) -> None:
        """Let a task wait for a worker."""
        line = self._lines[task.device]
        if task.suspect:
            line.suspects.push(task)
            return
        living = {worker.node for worker in self.workers.values() if worker.has(task.device)}
        nodes = [node for node in sorted(task.local) if node in living and task.local[node] > 0]
        if nodes:
            best = max(nodes, key=lambda node: task.local[node])
            line.by_node.setdefault(best, TaskQueue()).push(task)
        else:
            line.anywhere.push(task)

    def drain(self) -> list[TaskRun]:
        """Take back every waiting task."""
        return [task for queue in self._queues() for task in queue.drain()]

    def tasks(self) -> list[TaskRun]:
        """Every waiting task."""
        return [task for queue in self._queues() for task in queue.scan(len(queue))]

    def remove(self, attempt: Attempt) -> None:
        """A worker no longer has an attempt."""
        worker = self.workers.get(attempt.worker)
        if worker is not None:
            worker.attempts.pop((attempt.task.id, attempt.number), None)

    def living_nodes(self) -> set[str]:
        """Ids of the nodes that have a worker."""
        return {worker.node for worker in self.workers.values()}

    def next(self) -> tuple[TaskRun, WorkerSlots] | None:
        """Take the next task to launch, and the worker for it; None if nothing can start now."""
        free = [worker for worker in self._by_load() if worker.open]
        for line in self._lines.values():
            suspect = line.suspects.peek()
            able = [worker for worker in free if worker.has(line.device) and self._is_worth(worker, line)]
            if suspect is not None and able:
                elsewhere = [worker for worker in able if worker.node not in suspect.avoid]
                drained = (elsewhere or able)[0]
                if not drained.occupied:
                    line.suspects.discard(suspect)
                    return suspect, drained
                free.remove(drained)
        for worker in free:
            for line in self._lines_of(worker):
                found = self._local(worker, line) or self._steal(worker, line)
                if found is not None:
                    queue, task = found
                    queue.discard(task)
                    return task, worker
        return None

    def idle(self) -> list[WorkerSlots]:
        """Workers with a thread that has nothing to do, the best first."""
        return [w for w in self._by_load() if w.idle and w.open and not w.slow and w.node not in self.full]

    @property
    def waiting(self) -> int:
        """How many tasks wait for a worker."""
        return sum(map(len, self._lines.values()))

    def _queues(self) -> list[TaskQueue]:
        return [queue for line in self._lines.values() for queue in line.queues()]

    def _lines_of(self, worker: WorkerSlots) -> list[TaskLine]:
        """Where a worker looks for a task, in order: a GPU has first what nothing else can do."""
        lines = [line for line in self._lines.values() if worker.has(line.device)]
        return [line for line in lines if self._is_worth(worker, line)]

    def _by_load(self) -> list[WorkerSlots]:
        return sorted(self.workers.values(), key=lambda worker: worker.load)

    def _is_worth(self, worker: WorkerSlots, line: TaskLine) -> bool:
        """Whether a task would be done sooner here than by waiting until the others come round to it."""
        if worker.node in self.full:
            return False
        if not worker.slow:
            return True
        others = sum(w.threads for w in self.workers.values() if not w.slow and self._takes_tasks(w, line))
        waiting = len(line) if line.device == "gpu" else self.waiting
        return waiting >= worker.pace * others

    def _takes_tasks(self, worker: WorkerSlots, line: TaskLine) -> bool:
        return not worker.draining and worker.node not in self.full and worker.has(line.device)

    def _local(self, worker: WorkerSlots, line: TaskLine) -> tuple[TaskQueue, TaskRun] | None:
        heads = [
            (task.priority, queue, task)
            for queue in (line.by_node.get(worker.node), line.anywhere)
            if queue is not None and (task := queue.peek()) is not None and (worker.idle or not task.long)
        ]
        return min(heads, key=lambda head: head[0])[1:] if heads else None

    def _steal(self, worker: WorkerSlots, line: TaskLine) -> tuple[TaskQueue, TaskRun] | None:
        if not worker.idle:
            return None
        threads: dict[str, int] = {}
        for other in self.workers.values():
            if self._takes_tasks(other, line) and self._is_worth(other, line):
                threads[other.node] = threads.get(other.node, 0) + other.threads
        best: tuple[float, tuple[int, int, int], TaskQueue, TaskRun] | None = None
        for node, queue in line.by_node.items():
            if node == worker.node or not len(queue):
                continue
            for task in queue.scan(STEAL_SCAN):
                moved = task.local.get(node, 0.0) - task.local.get(worker.node, 0.0)
                wait = task.seconds * (1 + len(queue) / max(1, threads.get(node, 0)))
                if node in threads and moved / BANDWIDTH > wait:
                    continue  # else nobody there will take it
                if best is None or (moved, task.priority) < best[:2]:
                    best = (moved, task.priority, queue, task)
        return None if best is None else best[2:]
