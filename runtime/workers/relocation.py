"""Relocation: how a task that lacks inputs tells the driver, and waits on its worker for their new places.

The announcement travels by Dask's events, under the topic ``headwater-runs``:

    {"kind": "inputs lost", "run": run, "stage": 2, "id": 17, "attempt": 1, "lost": [[stage, partition, attempt], ...]}

The answer comes by the handler ``headwater_relocate``, into the attempt's mailbox. A task that waits has left Dask's
thread pool, so it can't keep the worker from running what it waits for.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from distributed import secede
from distributed.worker import thread_state

from ..task import CancelledTask, Segment, Task
from .transfer import fetch_failed

#: how long to wait for the driver, and how often to repeat the announcement meanwhile
PATIENCE_SECONDS = 600.0
_REMIND_SECONDS = 5.0
_POLL_SECONDS = 0.1

Nodes = Mapping[str, Sequence[str]]


def pack_segments(segments: Mapping[Segment, Segment]) -> bytes:
    """Pickle old places and new ones, for the handler ``headwater_relocate``."""
    return pickle.dumps(dict(segments), pickle.HIGHEST_PROTOCOL)


def unpack_segments(data: bytes) -> dict[Segment, Segment]:
    """Undo `pack_segments`."""
    return pickle.loads(data)


def leave_slot() -> bool:
    """Let Dask start another task in the place of the one that this thread runs.

    Returns:
        Whether the thread ran a Dask task.
    """
    if getattr(thread_state, "key", None) is None:
        return False
    with suppress(KeyError, RuntimeError, ValueError):  # the worker is closing
        secede()
    return True


class Relocations:
    """The mailboxes of the attempts that run on one worker.

    Args:
        announce: sends a message to the driver of a run, from any thread.
        patience_seconds: how long an attempt waits for an answer.
        remind_seconds: how often it repeats its announcement meanwhile.
    """

    def __init__(
        self,
        announce: Callable[[str, dict[str, Any]], None],
        patience_seconds: float = PATIENCE_SECONDS,
        remind_seconds: float = _REMIND_SECONDS,
    ):
        self.announce, self.patience_seconds, self.remind_seconds = announce, patience_seconds, remind_seconds
        self._boxes: dict[tuple[str, str], Mailbox] = {}
        self._lock = threading.Lock()

    @contextmanager
    def mailbox(self, task: Task, cancelled: threading.Event) -> Iterator[Mailbox]:
        """Hold a mailbox for an attempt while it runs."""
        box, key = Mailbox(task, cancelled, self), (task.run, task.name)
        with self._lock:
            self._boxes[key] = box
        try:
            yield box
        finally:
            with self._lock:
                if self._boxes.get(key) is box:
                    del self._boxes[key]

    def fill(self, run: str, name: str, segments: Mapping[Segment, Segment], nodes: Nodes) -> bool:
        """Hand an answer to an attempt.

        Args:
            run: the run's id.
            name: `Task.name` of the attempt.
            segments: the places it knows, the first or the last ones, to what holds now.
            nodes: node id to the addresses of living workers.

        Returns:
            Whether the attempt runs here.
        """
        with self._lock:
            box = self._boxes.get((run, name))
        if box is not None:
            box.fill(segments, nodes)
        return box is not None


class Mailbox:
    """What the driver tells one attempt about its inputs."""

    def __init__(self, task: Task, cancelled: threading.Event, post: Relocations):
        self._task, self._cancelled, self._post = task, cancelled, post
        self._came = threading.Condition()
        self._told: dict[Segment, Segment] = {}
        self._nodes: dict[str, tuple[str, ...]] = {}
        #: a place that this attempt was told, to what it was told first
        self._first: dict[Segment, Segment] = {}
        self._stood_by: Sequence[Segment] = ()
        self._has_slot = True

    def relocate(self, lost: Sequence[Segment]) -> tuple[dict[Segment, Segment], dict[str, tuple[str, ...]]]:
        """Tell the driver of lost inputs, and wait until it has told where some of them are now.

        Args:
            lost: by the places last known.

        Returns:
            Lost places to new ones, not always all; and the nodes' living workers.

        Raises:
            CancelledTask: the attempt was cancelled, or the worker closes.
            FetchFailedError: the driver is silent.
        """
        with self._came:
            found = self._take(lost, new_only=True)
        if not found:
            self._announce(lost)
            self.give_way()
            found = self._wait(lost)
        return found, self._nodes

    def stand_by(self, lost: Sequence[Segment]) -> None:
        """Tell the driver that this attempt waits for another one of this process, which lacks these inputs."""
        if lost and lost != self._stood_by:
            self._stood_by = lost
            self._announce(lost)
            self.give_way()

    def give_way(self) -> None:
        """Give the slot in Dask's thread pool back, once."""
        if self._has_slot:
            self._has_slot = False
            leave_slot()

    def fill(self, segments: Mapping[Segment, Segment], nodes: Nodes) -> None:
        """Take an answer; from any thread."""
        with self._came:
            self._told.update(segments)
            self._nodes = {**self._nodes, **{node: tuple(found) for node, found in nodes.items()}}
            self._came.notify_all()

    def _wait(self, lost: Sequence[Segment]) -> dict[Segment, Segment]:
        begun = reminded = time.monotonic()
        with self._came:
            while not (found := self._take(lost)):
                if self._cancelled.is_set():
                    raise CancelledTask(f"task {self._task.name} was cancelled while it waited for inputs")
                now = time.monotonic()
                if now - begun > self._post.patience_seconds:
                    raise fetch_failed(lost)
                if now - reminded > self._post.remind_seconds:
                    reminded = now
                    self._announce(lost)
                self._came.wait(_POLL_SECONDS)
        return found

    def _take(self, lost: Sequence[Segment], new_only: bool = False) -> dict[Segment, Segment]:
        """Take the answers about lost places; old ones that name a lost place are thrown away."""
        found = {}
        for place in lost:
            first = self._first.get(place, place)
            answers = [self._told.pop(key) for key in dict.fromkeys((first, place)) if key in self._told]
            if answers and not (new_only and answers[-1] == place):
                found[place] = answers[-1]
                self._first[answers[-1]] = first
        return found

    def _announce(self, lost: Sequence[Segment]) -> None:
        blocks = sorted({(segment.stage, segment.partition, segment.attempt) for segment in lost})
        task = self._task
        message = {"kind": "inputs lost", "stage": task.stage, "id": task.id, "attempt": task.attempt}
        self._post.announce(task.run, {**message, "lost": [list(block) for block in blocks]})
