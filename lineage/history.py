"""History: what a run's journal tells of its partitions: what made them, where, at what cost. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from ..errors import ParameterError, did_you_mean
from .graph import Dependency, Edge, LineageGraph, Masks
from .journal import STATES

_STAGE_PARTITION = re.compile(r"(.*):(\d+)", re.DOTALL)


class Fate(IntEnum):
    """What became of a partition's result."""

    NOT_RUN = 0
    #: a node has its block, or its sink has its rows
    HELD = 1
    #: nobody had to read it any more
    DELETED = 2
    #: its node died, or it isn't where it was left
    LOST = 3


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
        fingerprints: recorded; None where nothing has run.
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
        graph: what every partition is made from.
        stages: what became of every partition, by stage.
        outputs: output name to stage.
        nodes: ids of the nodes that made something.

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
        self.stages: list[StageHistory] = []
        self.outputs: dict[str, int] = {}
        self.nodes: list[str] = []
        self._finished: set[int] = set()
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
        for node, stage_id, partition, attempt in blocks:
            if stage_id >= len(self.stages) or partition >= self.graph.partitions[stage_id]:
                continue
            stage = self.stages[stage_id]
            if stage.fingerprints[partition] is not None and stage.attempt[partition] == attempt:
                stage.fate[partition] = Fate.HELD
                stage.node[partition] = self._node(node)

    # -- replay ---------------------------------------------------------------------------------

    def _take(self, kind: str, *rest: Any) -> None:
        if kind == "started":
            self.run, self.pipeline = rest[0]["run"], rest[0].get("pipeline") or ""
        elif kind == "plan":
            self._planned(*rest)
        elif kind == "task":
            self._task_done(*rest)
        elif kind == "stage":
            self._stage_done(rest[0])
        elif kind == "rerun":
            self._finished.discard(rest[0])
            self.stages[rest[0]].fate[rest[1]] = Fate.LOST
        elif kind == "worker lost" and rest[2]:
            self._node_lost(rest[1])
        elif kind in STATES:
            self._ended(STATES[kind])

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
        stage = self.stages[stage_id]
        for partition, rows, size, fingerprint in results:
            stage.rows[partition], stage.bytes[partition] = rows, size
            stage.fingerprints[partition] = fingerprint
        made = [result[0] for result in results]
        stage.seconds[made] = seconds / max(1, len(made))
        stage.attempt[made], stage.node[made], stage.fate[made] = attempt, self._node(node), Fate.HELD

    def _stage_done(self, stage_id: int) -> None:
        """Let go of blocks as the scheduler does: once all stages that read them are finished."""
        self._finished.add(stage_id)
        for touched in (*self.graph.sources[stage_id], stage_id):
            if touched not in self.outputs.values() and self._finished.issuperset(
                self.graph.consumers[touched]
            ):
                self._change(touched, Fate.HELD, Fate.DELETED)

    def _node_lost(self, node: str) -> None:
        for stage in self.stages:
            if not stage.is_sink and node in self.nodes:
                stage.fate[(stage.node == self._node(node)) & (stage.fate == Fate.HELD)] = Fate.LOST

    def _ended(self, state: str) -> None:
        self.state = state
        if state != "finished":
            for stage in range(len(self.stages)):
                self._change(stage, Fate.HELD, Fate.DELETED)

    def _change(self, stage_id: int, before: Fate, after: Fate) -> None:
        fate = self.stages[stage_id].fate
        fate[fate == before] = after

    def _node(self, name: str) -> int:
        if name not in self.nodes:
            self.nodes.append(name)
        return self.nodes.index(name)
