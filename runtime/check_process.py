"""One process of a check: computes sampled partitions of user functions, and says what came out.

Its `main` reads ``FOLDER/job``, which the checking process wrote, and leaves tables and their
fingerprints in the folder.
"""

from __future__ import annotations

import pickle
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import pyarrow as pa

from ..errors import UserFunctionError
from ..lineage.fingerprint import Fingerprint
from ..ops.kernel import Context, Stream
from ..ops.map_batches import MapBatchesKernel


@dataclass(frozen=True)
class Sample:
    """One partition of an operator's input.

    Attributes:
        operator: position of the operator in the check.
        partition: index of the partition.
        path: of the rows, an Arrow IPC file.
    """

    operator: int
    partition: int
    path: Path


@dataclass(frozen=True)
class Outcome:
    """What a function made of a sample, once.

    Attributes:
        operator, partition: which sample.
        turn: counts the times that the process computed it.
        rows: of the output.
        fingerprint: of the output; empty if the function raised.
        path: of the output, an Arrow IPC file.
        error: what the function raised, as `UserFunctionError` tells it.
    """

    operator: int
    partition: int
    turn: int
    rows: int = 0
    fingerprint: str = ""
    path: Path | None = None
    error: str = ""


@dataclass(frozen=True)
class Job:
    """What every process of a check computes."""

    kernels: tuple[MapBatchesKernel, ...]
    samples: tuple[Sample, ...]
    memory_bytes: int


@dataclass(frozen=True)
class Conditions:
    """What is made different between two processes, and must not matter.

    Attributes:
        name: of the process, in file names.
        hash_seed: Python's, which orders sets of strings.
        time_zone: a POSIX time zone.
        fill: glibc fills fresh memory with the complement of this byte; 0 leaves it.
        turns: how often each sample is computed.
        backwards: last sample first.
        thread: in a thread of its own, with quick switches, instead of the main one.
        operators: which to compute; None computes all.
        not_before: time, in seconds since the epoch, before which nothing is computed.
    """

    name: str
    hash_seed: int
    time_zone: str
    fill: int
    turns: int = 1
    backwards: bool = False
    thread: bool = False
    operators: tuple[int, ...] | None = None
    not_before: float = 0.0

    def environment(self) -> dict[str, str]:
        """The environment variables that make the process so."""
        return {
            "PYTHONHASHSEED": str(self.hash_seed),
            "TZ": self.time_zone,
            "HOSTNAME": f"headwater-check-{self.name}",
            "MALLOC_PERTURB_": str(self.fill),
        }


def compute(job: Job, conditions: Conditions, folder: Path) -> list[Outcome]:
    """Compute the samples of a job in this process.

    Returns:
        An outcome for each sample and turn, in the order in which they were computed.
    """
    wanted = conditions.operators
    samples = [sample for sample in job.samples if wanted is None or sample.operator in wanted]
    if conditions.backwards:
        samples.reverse()
    time.sleep(max(0.0, conditions.not_before - time.time()))
    outcomes: list[Outcome] = []

    def work() -> None:
        for turn in range(conditions.turns):
            for sample in samples:
                path = folder / f"{conditions.name}-{turn}-{sample.operator}-{sample.partition}.arrow"
                (folder / f"{conditions.name}.operator").write_text(f"{sample.operator}")
                outcomes.append(_outcome(job, sample, turn, path))

    if conditions.thread:
        sys.setswitchinterval(1e-5)
        thread = threading.Thread(target=work, name=f"headwater-check-{conditions.name}")
        thread.start()
        thread.join()
    else:
        work()
    return outcomes


def read_rows(path: Path) -> pa.Table:
    """Map a file that `write_rows` wrote."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_rows(path: Path, rows: Stream, schema: pa.Schema) -> tuple[int, str]:
    """Write tables as an Arrow IPC file; returns the number of rows and their fingerprint."""
    digest = Fingerprint(schema)
    with pa.ipc.new_file(str(path), schema) as writer:
        for table in rows:
            digest.update(table)
            writer.write_table(table)
    return digest.rows, digest.hexdigest()


def _outcome(job: Job, sample: Sample, turn: int, path: Path) -> Outcome:
    kernel = job.kernels[sample.operator]
    context = Context(sample.partition, job.memory_bytes)
    try:
        stream = kernel.run([iter([read_rows(sample.path)])], context)
        rows, fingerprint = write_rows(path, stream, kernel.output)
    except UserFunctionError as error:
        return Outcome(sample.operator, sample.partition, turn, error=str(error))
    return Outcome(sample.operator, sample.partition, turn, rows, fingerprint, path)


def main(folder: str, name: str) -> None:
    """Do what ``FOLDER/NAME.conditions`` says with ``FOLDER/job``."""
    root = Path(folder)
    conditions: Conditions = pickle.loads((root / f"{name}.conditions").read_bytes())
    job: Job = cloudpickle.loads((root / "job").read_bytes())
    (root / f"{name}.outcomes").write_bytes(pickle.dumps(compute(job, conditions, root)))
