"""Placement: which worker gets which task next. Locality first, work for idle threads second. Pure.

A task waits in the queue of the node that holds most of its input. A worker takes from its node's
queue, then from tasks without preference. A worker with an idle thread steals from another node's
queue if moving the bytes costs less than the wait there: estimated from sizes, so no timers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

#: bytes per second that a worker fetches from another node
BANDWIDTH = 400e6
#: entries of a queue that a thief looks at
STEAL_SCAN = 64


@dataclass(eq=False)
class TaskRun:
    """A task through all its attempts.

    Attributes:
        stage, id, partitions: what it computes.
        attempt: number of the running or last attempt; -1 before the first.
        worker: address of the worker that has it, or None while it waits.
        deaths: workers that died with it.
        fetch_failures: attempts that could not read an input.
        refusals: attempts that failed for reasons of the system.
        culprits: addresses of the workers that died with it.
        seconds: how long it will run, estimated.
        local: bytes of its input on each node that has some.
    """

    stage: int
    id: int
    partitions: np.ndarray
    attempt: int = -1
    worker: str | None = None
    deaths: int = 0
    fetch_failures: int = 0
    refusals: int = 0
    culprits: list[str] = field(default_factory=list)
    seconds: float = 0.005
    local: dict[str, float] = field(default_factory=dict)

    @property
    def priority(self) -> tuple[int, int, int]:
        """Earlier stages first, as others wait for them; then the order of partitions."""
        return (self.stage, int(self.partitions[0]), self.id)

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills its workers; then it runs alone, so that no neighbour is blamed."""
        return self.deaths >= 2


@dataclass(eq=False)
class WorkerSlots:
    """A living worker and the tasks it has, by id."""

    address: str
    node: str
    threads: int
    host: str
    tasks: dict[int, TaskRun] = field(default_factory=dict)

    @property
    def load(self) -> tuple[float, str]:
        """Tasks per thread; the address breaks ties."""
        return (len(self.tasks) / self.threads, self.address)

    @property
    def open(self) -> bool:
        """Whether it takes another task: one more than threads, so that none waits for the driver."""
        return len(self.tasks) <= self.threads and not any(task.suspect for task in self.tasks.values())


class _Queue:
    """Waiting tasks by priority; `discard` is lazy."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int, int], int, TaskRun]] = []
        self._pushed = 0
        self._live: set[int] = set()

    def __len__(self) -> int:
        return len(self._live)

    def push(self, task: TaskRun) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (task.priority, self._pushed, task))
        self._live.add(task.id)

    def peek(self) -> TaskRun | None:
        while self._heap and self._heap[0][2].id not in self._live:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def discard(self, task: TaskRun) -> None:
        self._live.discard(task.id)

    def scan(self, most: int) -> Iterator[TaskRun]:
        """Yield some waiting tasks, late ones rather than early ones."""
        for _, _, task in reversed(self._heap):
            if task.id in self._live:
                yield task
                most -= 1
                if most == 0:
                    return

    def drain(self) -> list[TaskRun]:
        tasks = list({task.id: task for _, _, task in sorted(self._heap) if task.id in self._live}.values())
        self._heap.clear()
        self._live.clear()
        return tasks


class Placement:
    """Living workers, and the tasks that wait for them."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerSlots] = {}
        self._by_node: dict[str, _Queue] = {}
        self._anywhere = _Queue()
        self._suspects = _Queue()

    @property
    def threads(self) -> int:
        """Worker threads there are."""
        return sum(worker.threads for worker in self.workers.values())

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
        if task.suspect:
            self._suspects.push(task)
            return
        living = {worker.node for worker in self.workers.values()}
        nodes = [node for node in sorted(task.local) if node in living and task.local[node] > 0]
        if nodes:
            best = max(nodes, key=lambda node: task.local[node])
            self._by_node.setdefault(best, _Queue()).push(task)
        else:
            self._anywhere.push(task)

    def drain(self) -> list[TaskRun]:
        """Take back every waiting task."""
        queues = [*self._by_node.values(), self._anywhere, self._suspects]
        return [task for queue in queues for task in queue.drain()]

    def remove(self, task: TaskRun) -> None:
        """A worker no longer has a task."""
        worker = self.workers.get(task.worker or "")
        if worker is not None:
            worker.tasks.pop(task.id, None)

    def next(self) -> tuple[TaskRun, WorkerSlots] | None:
        """Take the next task to launch and assign it to a worker; None if nothing can start now."""
        workers = sorted(self.workers.values(), key=lambda worker: worker.load)
        free = [worker for worker in workers if worker.open]
        suspect = self._suspects.peek()
        if suspect is not None and free:
            drained = free.pop(0)
            if not drained.tasks:
                return self._assign(self._suspects, suspect, drained)
        for worker in free:
            found = self._local(worker) or self._steal(worker)
            if found is not None:
                return self._assign(*found, worker)
        return None

    def _assign(self, queue: _Queue, task: TaskRun, worker: WorkerSlots) -> tuple[TaskRun, WorkerSlots]:
        queue.discard(task)
        task.worker = worker.address
        worker.tasks[task.id] = task
        return task, worker

    def _local(self, worker: WorkerSlots) -> tuple[_Queue, TaskRun] | None:
        heads = [
            (task.priority, queue, task)
            for queue in (self._by_node.get(worker.node), self._anywhere)
            if queue is not None and (task := queue.peek()) is not None
        ]
        return min(heads, key=lambda head: head[0])[1:] if heads else None

    def _steal(self, worker: WorkerSlots) -> tuple[_Queue, TaskRun] | None:
        if len(worker.tasks) >= worker.threads:
            return None
        threads: dict[str, int] = {}
        for other in self.workers.values():
            threads[other.node] = threads.get(other.node, 0) + other.threads
        best: tuple[float, tuple[int, int, int], _Queue, TaskRun] | None = None
        for node, queue in self._by_node.items():
            if node == worker.node or not len(queue):
                continue
            for task in queue.scan(STEAL_SCAN):
                moved = task.local.get(node, 0.0) - task.local.get(worker.node, 0.0)
                wait = task.seconds * (1 + len(queue) / max(1, threads.get(node, 0)))
                if node in threads and moved / BANDWIDTH > wait:
                    continue
                if best is None or (moved, task.priority) < best[:2]:
                    best = (moved, task.priority, queue, task)
        return None if best is None else best[2:]
