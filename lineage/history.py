"""History: what a run's journal tells of its partitions: what made them, where, at what cost. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ParameterError, did_you_mean
from .graph import Dependency, Edge, LineageGraph, Masks
from .journal import STATES
from .restored import Fate, Restored, Result

__all__ = ["Fate", "History", "StageHistory"]

_STAGE_PARTITION = re.compile(r"(.*):(\d+)", re.DOTALL)


@dataclass
class StageHistory:
    """The results of one stage; every array has the shape (partitions,).

    Attributes:
        label: its operators in words.
        is_sink: whether it writes to a sink instead of leaving blocks.
        rows, bytes: of each result.
        seconds: of a task; a task of several partitions counts for each in equal parts.
        attempt: that made the result that counts.
        node: index into `History.nodes`, of the node that made it.
        fate: a `Fate`.
        fingerprints: recorded; None where nothing has run, or what ran was rolled back.
        copies: partition to the indices of further nodes that have its block.
        files: partition of a sink to (path, target, rows, bytes) of each file it staged.
    """

    label: str
    is_sink: bool
    rows: np.ndarray
    bytes: np.ndarray
    seconds: np.ndarray
    attempt: np.ndarray
    node: np.ndarray
    fate: np.ndarray
    fingerprints: list[str | None]
    copies: dict[int, list[int]] = field(default_factory=dict)
    files: dict[int, list[list[Any]]] = field(default_factory=dict)

    @property
    def never_ran(self) -> np.ndarray:
        """Which partitions no attempt ever made; shape (partitions,)."""
        unmade = np.array([text is None for text in self.fingerprints], dtype=bool)
        return unmade & ((self.fate == Fate.NOT_RUN) | (self.fate == Fate.SKIPPED))

    @classmethod
    def empty(cls, label: str, is_sink: bool, count: int) -> StageHistory:
        """A stage of which nothing has run."""
        whole = [np.zeros(count, dtype=np.int64) for _ in range(5)]
        return cls(
            label, is_sink, whole[0], whole[1], np.zeros(count), whole[2], whole[3], whole[4], [None] * count
        )


class History:
    """What a journal says of a run, replayed.

    Args:
        records: of the journal, in order (see `lineage.journal.read`).

    Attributes:
        run, pipeline: from its header.
        state: how the run ended; None if no record says that it did.
        epoch: of its last driver.
        graph: what every partition is made from.
        stages: what became of every partition, by stage.
        outputs: output name to stage.
        nodes: ids of the nodes that have, or had, some result.

    Raises:
        ParameterError: the run ended before it was planned.

    Example:
        >>> history = History([
        ...     ["plan", [[0, "key", "scan", 2, [], False]], {"rides": 0}],
        ...     ["task", 0, 0, 0, "node-a", [[1, 10, 80, "a-00"]], 0.5],
        ... ])
        >>> history.locate("rides:1"), int(history.stages[0].rows[1])
        ((0, 1), 10)
    """

    def __init__(self, records: Iterable[Sequence[Any]]):
        self.run = self.pipeline = ""
        self.state: str | None = None
        self.epoch = 0
        self.stages: list[StageHistory] = []
        self.outputs: dict[str, int] = {}
        self.nodes: list[str] = []
        self._finished: set[int] = set()
        self._boundaries: dict[int, str] = {}
        self._committing: set[str] = set()
        self._committed: set[str] = set()
        for record in records:
            self._take(*record)
        if not self.stages:
            raise ParameterError(f"run {self.run} ended before it was planned: its journal has no plan.")

    def locate(self, text: str) -> tuple[int, int]:
        """Find a partition by what a user calls it.

        Args:
            text: ``OUTPUT:INDEX`` or ``sSTAGE:INDEX``; an index alone if there is one output.

        Returns:
            Stage and partition.

        Raises:
            ParameterError: there is none like that.
        """
        first = next(iter(self.outputs))
        alone = text.isdecimal() and len(self.outputs) == 1
        match = _STAGE_PARTITION.fullmatch(f"{first}:{text}" if alone else text)
        stages = self.outputs | {
            f"s{stage}": stage for stage in range(len(self.stages)) if f"s{stage}" not in self.outputs
        }
        if match is None:
            raise ParameterError(
                f"partition {text!r}: write OUTPUT:INDEX or sSTAGE:INDEX, as {first}:0. "
                f"{did_you_mean(text.rstrip(':0123456789'), stages)}"
            )
        name, index = match[1], int(match[2])
        if name not in stages:
            raise ParameterError(f"the run has no output or stage {name!r}. {did_you_mean(name, stages)}")
        count = self.graph.partitions[stages[name]]
        if index >= count:
            valid = "partition 0 only" if count == 1 else f"partitions 0 to {count - 1}"
            raise ParameterError(f"{name} has no partition {index}: it has {valid}.")
        return stages[name], index

    def present(self) -> Masks:
        """Which results can be read, for each stage."""
        return [stage.fate == Fate.HELD for stage in self.stages]

    def observe(self, blocks: Iterable[tuple[str, int, int, int]]) -> None:
        """Take what nodes say that they have for the truth, instead of what the journal let expect.

        Args:
            blocks: (node, stage, partition, attempt) of each block found; other attempts than the one
                whose result counts are strays.
        """
        for stage in self.stages:
            if not stage.is_sink:
                stage.fate[stage.fate == Fate.HELD] = Fate.LOST
                stage.copies.clear()
        found: set[tuple[int, int]] = set()
        for name, stage_id, partition, attempt in blocks:
            if stage_id >= len(self.stages) or partition >= self.graph.partitions[stage_id]:
                continue
            stage = self.stages[stage_id]
            if stage.fingerprints[partition] is None or stage.attempt[partition] != attempt:
                continue
            if (stage_id, partition) in found:
                self._copied(stage_id, partition, name)
            else:
                found.add((stage_id, partition))
                stage.fate[partition] = Fate.HELD
                stage.node[partition] = self._node(name)

    def restore(self) -> Restored:
        """Return what a driver needs that goes on with the run."""
        return Restored(
            self.epoch,
            self.state,
            tuple(
                tuple(self._result(stage, partition) for partition in range(len(stage.fate)))
                for stage in self.stages
            ),
            dict(self._boundaries),
            frozenset(self._committing - self._committed),
            frozenset(self._committed),
        )

    def _result(self, stage: StageHistory, partition: int) -> Result | None:
        fingerprint = stage.fingerprints[partition]
        if fingerprint is None:
            return None
        files = stage.files.get(partition)
        return Result(
            int(stage.attempt[partition]),
            int(stage.rows[partition]),
            int(stage.bytes[partition]),
            fingerprint,
            self.nodes[stage.node[partition]],
            None if files is None else tuple((path, to, rows, size) for path, to, rows, size in files),
            Fate(stage.fate[partition]),
            tuple(self.nodes[node] for node in stage.copies.get(partition, ())),
        )

    # -- replay ---------------------------------------------------------------------------------

    def _take(self, kind: str, *rest: Any) -> None:
        if kind == "started":
            self.run, self.pipeline = rest[0]["run"], rest[0].get("pipeline") or ""
        elif kind == "resumed":
            self.epoch, self.state = rest[0]["epoch"], None
        elif kind == "committing":
            self._committing.add(rest[0])
        elif kind == "committed":
            self._committed.add(rest[0])
        elif kind == "boundaries":
            self._boundaries[rest[0]] = rest[1]
        elif kind in STATES:
            self._ended(STATES[kind])
        elif kind == "worker lost":
            if rest[2]:
                self._node_lost(rest[1])
        elif take := _TAKERS.get(kind):
            take(self, *rest)

    def _planned(self, stages: list[list[Any]], outputs: dict[str, int]) -> None:
        self.outputs = outputs
        self.graph = LineageGraph(
            tuple(stage[3] for stage in stages),
            tuple(tuple(Edge(e[0], Dependency(e[1]), e[2], e[3]) for e in stage[4]) for stage in stages),
        )
        self.stages = [StageHistory.empty(stage[2], stage[5], stage[3]) for stage in stages]

    def _task_done(
        self, stage_id: int, _task: int, attempt: int, node: str, results: list[list[Any]], seconds: float
    ) -> None:
        for partition, rows, size, fingerprint, *files in results:
            self._made(stage_id, partition, attempt, rows, size, fingerprint, node)
            if files:
                self.stages[stage_id].files[partition] = files[0]
        self.stages[stage_id].seconds[[result[0] for result in results]] = seconds / max(1, len(results))

    def _adopted(self, stage_id: int, node: str, results: list[list[Any]]) -> None:
        for partition, attempt, rows, size, fingerprint in results:
            self._made(stage_id, partition, attempt, rows, size, fingerprint, node)

    def _made(
        self, stage_id: int, partition: int, attempt: int, rows: int, size: int, fingerprint: str, node: str
    ) -> None:
        """A result counts from now on; another attempt's files and copies are strays."""
        stage, place = self.stages[stage_id], self._node(node)
        if stage.attempt[partition] != attempt or stage.fate[partition] != Fate.HELD:
            stage.copies.pop(partition, None)
        if stage.attempt[partition] != attempt:
            stage.files.pop(partition, None)
        if place in stage.copies.get(partition, ()):
            stage.copies[partition].remove(place)
        stage.rows[partition], stage.bytes[partition] = rows, size
        stage.fingerprints[partition], stage.attempt[partition] = fingerprint, attempt
        stage.node[partition], stage.fate[partition] = place, Fate.HELD

    def _copied(self, stage_id: int, partition: int, node: str) -> None:
        stage, place = self.stages[stage_id], self._node(node)
        copies = stage.copies.setdefault(partition, [])
        if place != stage.node[partition] and place not in copies:
            copies.append(place)

    def _moved(self, source: str, target: str, parts: list[list[int]]) -> None:
        old, new = self._node(source), self._node(target)
        for stage_id, partition in parts:
            stage = self.stages[stage_id]
            places = [int(stage.node[partition]), *stage.copies.get(partition, ())]
            if old in places:
                places = list(dict.fromkeys(new if place == old else place for place in places))
                stage.node[partition], stage.copies[partition] = places[0], places[1:]

    def _rerun(self, stage_id: int, partitions: list[int]) -> None:
        self._finished.discard(stage_id)
        stage = self.stages[stage_id]
        stage.fate[partitions] = Fate.LOST
        for partition in partitions:
            stage.copies.pop(partition, None)

    def _rolled_back(self, stage_id: int, partitions: list[int]) -> None:
        """What was made is forgotten, but not what it took."""
        self._rerun(stage_id, partitions)
        stage = self.stages[stage_id]
        for partition in partitions:
            stage.fingerprints[partition] = None
            stage.files.pop(partition, None)
        if not any(stage.fingerprints):  # cut anew, from a new sample
            self._boundaries.pop(stage_id, None)

    def _skipped(self, stage_id: int, partitions: list[int]) -> None:
        fate = self.stages[stage_id].fate
        chosen = np.asarray(partitions, dtype=np.int64)
        fate[chosen[fate[chosen] != Fate.HELD]] = Fate.SKIPPED

    def _stage_done(self, stage_id: int, _rows: int) -> None:
        """Let go of blocks as the scheduler does: once all stages that read them are finished."""
        self._finished.add(stage_id)
        for touched in (*self.graph.sources[stage_id], stage_id):
            if touched not in self.outputs.values() and self._finished.issuperset(
                self.graph.consumers[touched]
            ):
                self._change(touched, Fate.HELD, Fate.DELETED)

    def _node_lost(self, node: str) -> None:
        if node not in self.nodes:
            return
        lost = self._node(node)
        for stage in self.stages:
            if stage.is_sink:
                continue
            for copies in stage.copies.values():
                if lost in copies:
                    copies.remove(lost)
            for partition in np.flatnonzero((stage.node == lost) & (stage.fate == Fate.HELD)).tolist():
                if rest := stage.copies.get(partition):
                    stage.node[partition] = rest.pop(0)
                else:
                    stage.fate[partition] = Fate.LOST

    def _ended(self, state: str) -> None:
        """A run that didn't finish leaves nothing but the files of outputs that were committed."""
        self.state = state
        kept = {self.outputs[name] for name in self._committed}
        if state != "finished":
            for stage in set(range(len(self.stages))) - kept:
                self._change(stage, Fate.HELD, Fate.DELETED)

    def _change(self, stage_id: int, before: Fate, after: Fate) -> None:
        fate = self.stages[stage_id].fate
        fate[fate == before] = after

    def _node(self, name: str) -> int:
        if name not in self.nodes:
            self.nodes.append(name)
        return self.nodes.index(name)


_TAKERS: dict[str, Callable[..., None]] = {
    "plan": History._planned,
    "task": History._task_done,
    "adopted": History._adopted,
    "replicated": History._copied,
    "moved": History._moved,
    "stage": History._stage_done,
    "rerun": History._rerun,
    "rolled back": History._rolled_back,
    "skipped": History._skipped,
}
