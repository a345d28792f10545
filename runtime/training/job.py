"""What members of a gang are told: the job, once; the orders of each generation; what they answer. Plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ...lineage.owner import Owner
from ...ops.training.program import DataInfo
from ...ops.training.train import TrainKernel
from .gang_plan import Range
from .shard_source import ShardPlan

#: (driver's epoch, attempt at the task): orders of a lower one are refused
Fence = tuple[int, int]


@dataclass(frozen=True)
class TrainJob:
    """What stays the same as long as a train stage runs.

    Attributes:
        run, stage: which stage of which run.
        key: its lineage key.
        owner: the driver's process.
        kernel: program, features, settings.
        schemas: of each part's rows: "train", and "validation" if there is one.
        names: of each part, what its shards' files are called; the same for all train stages of the run that cut the
            same rows in the same way.
        bounds: of each part, the row numbers at which shards are cut, shape (shards + 1,).
        quota_bytes: bound of each node's scratch folder.
        device: where the planner has put the stage, "cpu" or "gpu".
    """

    run: str
    stage: int
    key: str
    owner: Owner
    kernel: TrainKernel
    schemas: Mapping[str, pa.Schema]
    names: Mapping[str, str]
    bounds: Mapping[str, np.ndarray]
    quota_bytes: int | None = None
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Names the gang, uniquely in a cluster."""
        return f"{self.run}/s{self.stage}"

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self.bounds["train"]) - 1


@dataclass(frozen=True)
class PrepareOrders:
    """Which shards a member brings onto its node.

    Attributes:
        plans: of each part ("train", "validation"), the shards and where their rows lie.
        nodes: node id to the addresses of living workers that can serve its blocks.
        widths: of vector columns, as far as they are known.
    """

    plans: Mapping[str, Sequence[ShardPlan]]
    nodes: Mapping[str, tuple[str, ...]]
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardSummary:
    """What is known of a shard once its arrays are there.

    Attributes:
        part: "train" or "validation".
        shard: its number.
        rows: how many it has.
        widths: of its vector columns; without those of which it has no row.
        target_range: smallest and largest target.
    """

    part: str
    shard: int
    rows: int
    widths: Mapping[str, int] = field(default_factory=dict)
    target_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Orders:
    """What one member does in one generation.

    Attributes:
        generation: its number.
        rank: of the member.
        addresses: of the endpoints, by rank.
        layout: ranges of shards, by rank.
        token: that members of this gang know each other by.
        info: what the program is told of the data.
    """

    generation: int
    rank: int
    addresses: tuple[str, ...]
    layout: tuple[Range, ...]
    token: str
    info: DataInfo


@dataclass
class TrainingLog:
    """What happened to a gang, for the report. No part of the model.

    Attributes:
        steps: that the model includes.
        generations: how many constellations there were.
        members: how many there are in the last one.
        lost, joined, left: addresses of members.
        steps_lost: steps that were begun and had to be repeated.
        stalls: seconds from each break to the next completed step.
        seconds: of all steps.
        adopted_step: steps that were found done when this coordinator began; -1 if it began anew.
        metrics: of the last step; the model's history has those of all.
        transport: which way arrays went in the last constellation: "host", or "nccl" or "ipc" between
            devices.
        to_device_bytes, to_host_bytes: crossed at the members of the last constellation.
    """

    steps: int = 0
    generations: int = 0
    members: int = 0
    lost: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    steps_lost: int = 0
    stalls: list[float] = field(default_factory=list)
    seconds: float = 0.0
    adopted_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    transport: str = "host"
    to_device_bytes: int = 0
    to_host_bytes: int = 0

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return dict(vars(self))
