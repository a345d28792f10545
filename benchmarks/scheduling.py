"""What a plan costs the driver and its scheduler, without a cluster: every task is answered at once, with nothing done.

So it shows what grows faster than partitions, tasks or stages do, whatever else the machine is doing.
"""

from __future__ import annotations

import pickle
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headwater.ops import partitioner as partitioners
from headwater.planner.plan import PhysicalPlan
from headwater.runtime.scheduler import Scheduler
from headwater.runtime.scheduler_events import Launch, TaskFinished, Tick, WorkerJoined
from headwater.runtime.task import Block, Metrics, PartitionResult, Task, TaskResult

_FINGERPRINT = "0" * 32


@dataclass(frozen=True)
class Cost:
    """What a run costs the driver.

    Attributes:
        seconds: of processor time.
        tasks, partitions, turns: how many there were; a turn takes events and gives instructions.
        sent_bytes: of all tasks, pickled.
        peak_bytes: most memory of Python objects that the run added; 0 if it wasn't asked for.
    """

    seconds: float
    tasks: int
    partitions: int
    turns: int
    sent_bytes: int
    peak_bytes: int = 0


def simulate(plan: PhysicalPlan, threads: int = 2, memory: bool = False) -> Cost:
    """Drive the scheduler through a whole run.

    Args:
        plan: what to run.
        threads: workers of one thread each, all on one node.
        memory: whether to measure memory, which takes several times longer.
    """
    if memory:
        tracemalloc.start()
    start = time.process_time()
    scheduler = Scheduler(plan, "run")
    out = scheduler.handle(Tick(0.0), *(WorkerJoined(f"w{i}", "n0") for i in range(threads)))
    tasks = turns = sent = 0
    while not scheduler.finished:
        launched = [instruction for instruction in out if isinstance(instruction, Launch)]
        tasks += len(launched)
        out = []
        for launch in launched:
            sent += len(pickle.dumps(launch.task))
            turns += 1
            result = _result(plan, launch.task, launch.worker)
            out += scheduler.handle(Tick(turns * 1e-3), TaskFinished(result))
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1] if memory else 0
    if memory:
        tracemalloc.stop()
    return Cost(seconds, tasks, sum(stage.partitions for stage in plan.stages), turns, sent, peak)


def _result(plan: PhysicalPlan, task: Task, worker: str) -> TaskResult:
    stage = plan.stages[task.stage]
    segments = stage.exchange.count if stage.exchange else 1
    partitions = []
    for given in task.partitions:
        name = f"runs/run/blocks/s{stage.id}-p{given.index}-a{task.attempt}.arrow"
        offsets = np.arange(segments + 1, dtype=np.int64) * 64
        rows = np.ones(segments, dtype=np.int64)
        block = Block(
            stage.id, given.index, task.attempt, "n0", name, offsets, rows, 64 * segments, _FINGERPRINT
        )
        sample = None
        if stage.sample:
            keys = pa.table(
                {key.column: pa.nulls(1, stage.schema.field(key.column).type) for key in stage.sample}
            )
            sample = partitioners.KeySample(1, keys)
        partitions.append(
            PartitionResult(given.index, 1, _FINGERPRINT, None if stage.sink else block, (), sample)
        )
    return TaskResult(stage.id, task.id, task.attempt, "n0", worker, tuple(partitions), Metrics(seconds=0.01))
