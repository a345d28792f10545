"""The one task of a train stage: rows in blocks become a model, by way of a gang."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...lineage.keys import lineage_key
from ...ops.training.model_table import encode_model
from ...ops.training.program import Program, State
from ...ops.training.sampling import shard_bounds
from ...ops.training.train import TrainKernel
from ..task import Segment, StageProgram, Task
from .coordinator import Coordinator, Network, Relocate
from .job import TrainingLog, TrainJob
from .member import host_state
from .service import TrainingService


@dataclass(frozen=True)
class TrainingHost:
    """What a worker lends to a coordinator.

    Attributes:
        service: its own.
        network: makes what reaches other workers, given those that are known.
        draining: whether the worker is about to leave.
    """

    service: TrainingService
    network: Callable[[Sequence[str]], Network]
    draining: Callable[[], bool] = lambda: False


def train_stage(
    host: TrainingHost,
    task: Task,
    program: StageProgram,
    kernel: TrainKernel,
    inputs: Sequence[Sequence[Segment]],
    schemas: Sequence[pa.Schema],
    relocate: Relocate | None,
    cancelled: threading.Event,
    report: Callable[[float, dict[str, float]], None],
) -> tuple[pa.Table, TrainingLog]:
    """Train, and return the model as a table, with what happened.

    Args:
        host: the worker's.
        task, program: the stage's task.
        kernel: the stage's.
        inputs: segments of the training rows, and of the validation rows.
        schemas: of these.
        relocate: tells where lost segments are now.
        cancelled: stops it.
        report: told the share that is done, and the metrics of a step.
    """
    job = make_job(task, program, kernel, inputs, schemas)
    known = [address for addresses in task.nodes.values() for address in addresses]
    coordinator = Coordinator(
        job,
        (task.epoch, task.attempt),
        host.service,
        host.network(known),
        inputs,
        task.nodes,
        relocate,
        cancelled,
        host.draining,
        report,
    )
    state = host_state(coordinator.run())
    algorithm = kernel.program
    optimizer = state.get("optimizer", {})
    about = {
        "objective": kernel.objective.label,
        "steps": int(state["step"]),
        **({"end": state["end"]} if state.get("end") else {}),
        "names": list(coordinator.info.names),
        "widths": coordinator.widths(),
    }
    table = encode_model(algorithm.params(state), optimizer, _history(algorithm, state), about)
    return table, coordinator.log


def make_job(
    task: Task,
    program: StageProgram,
    kernel: TrainKernel,
    inputs: Sequence[Sequence[Segment]],
    schemas: Sequence[pa.Schema],
) -> TrainJob:
    """Cut the rows into shards."""
    shards, rows = kernel.strategy.shards, [sum(segment.rows for segment in part) for part in inputs]
    bounds = {"train": shard_bounds(rows[0], shards, kernel.settings.batch_size)}
    if len(rows) > 1:
        bounds["validation"] = shard_bounds(rows[1], shards, shards)  # as even as can be
    names = {part: _file_name(kernel, segments, cut) for (part, cut), segments in zip(bounds.items(), inputs)}
    return TrainJob(
        task.run,
        task.stage,
        program.key,
        program.owner,
        kernel,
        dict(zip(bounds, schemas)),
        names,
        bounds,
        task.quota_bytes,
        program.device,
    )


def _file_name(kernel: TrainKernel, segments: Sequence[Segment], bounds: np.ndarray) -> str:
    """Name the files of a part's shards by what is in them."""
    content = lineage_key("Shards", (kernel.features.parameters(), bounds.tolist()), ())
    return f"s{segments[0].stage if segments else 0}-{content[:16]}"


def _history(program: Program, state: State) -> list[dict[str, float]]:
    """The figures of the steps: for each, name to value; an epoch's stand with its last step."""
    read = getattr(program, "history", None)
    if read is None:
        return [{"step": number + 1, **dict(row)} for number, row in enumerate(state.get("history", ()))]
    tables = read(state)
    rows: dict[float, dict[str, float]] = {}
    for part, prefix in (("steps", ""), ("epochs", "epoch_")):
        columns = tables[part]
        for number, step in enumerate(columns["step"]):
            row = rows.setdefault(step, {"step": step})
            for name, values in columns.items():
                own = name if name in ("step", "epoch") or name.startswith("validation_") else prefix + name
                row[own] = values[number]
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return [{name: row.get(name, math.nan) for name in names} for _, row in sorted(rows.items())]
