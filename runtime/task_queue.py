"""Queues of tasks that wait for a worker, and the lines in which they wait: one for each device. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .placement import TaskRun


class TaskQueue:
    """Waiting tasks by priority; `discard` is lazy."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int, int], int, TaskRun]] = []
        self._pushed = 0
        self._live: set[int] = set()

    def __len__(self) -> int:
        return len(self._live)

    def push(self, task: TaskRun) -> None:
        """Let a task wait."""
        self._pushed += 1
        heapq.heappush(self._heap, (task.priority, self._pushed, task))
        self._live.add(task.id)

    def peek(self) -> TaskRun | None:
        """The first task."""
        while self._heap and self._heap[0][2].id not in self._live:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def discard(self, task: TaskRun) -> None:
        """A task waits no more."""
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
        """Take out all tasks, in order."""
        tasks = list({task.id: task for _, _, task in sorted(self._heap) if task.id in self._live}.values())
        self._heap.clear()
        self._live.clear()
        return tasks


class TaskLine:
    """The tasks that wait for workers with a device, or for any.

    Attributes:
        device: "gpu" or "cpu".
        by_node: those of which a node has most of the input.
        anywhere: those without preference.
        suspects: those that run alone.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.by_node: dict[str, TaskQueue] = {}
        self.anywhere, self.suspects = TaskQueue(), TaskQueue()

    def __len__(self) -> int:
        return sum(map(len, self.queues()))

    def queues(self) -> list[TaskQueue]:
        """All of them."""
        return [*self.by_node.values(), self.anywhere, self.suspects]
