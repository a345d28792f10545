"""check: find user functions that give different results for the same rows, before recovery does.

Each operator's input is computed once, for a few partitions. Its function then gets these rows in
processes that differ in what must not matter: hash seed, time zone, contents of fresh memory, order of
the partitions, thread, a second call, and the time. The results must be the same, bit by bit.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle

from ..errors import ParameterError, RunFailedError, UserFunctionError
from ..lineage.suspects import Suspect, Trap, find_suspects, location
from ..ops.map_batches import MapBatches, MapBatchesKernel
from ..planner.options import PlanOptions
from ..planner.rewrite import walk
from .check_inputs import sample_inputs
from .check_process import Conditions, Job, Outcome, read_rows
from .check_report import CheckReport, Difference, OperatorCheck, compare, rank

#: memory, in bytes, that an operator may be told it has
_MEMORY_BYTES = 256 << 20
#: the time zones are 26 hours apart, so that even the date differs; fresh memory holds 0x00 or 0xAA
_FIRST = Conditions("first", hash_seed=1, time_zone="HWA-14", fill=0xFF)
_SECOND = Conditions(
    "second", hash_seed=2, time_zone="HWB+12", fill=0x55, turns=2, backwards=True, thread=True
)
#: a set of two strings has the same order under two hash seeds half of the time
_MORE_SEEDS = (3, 4, 5, 6, 7, 8)
_HASHED = (Trap.SET_ORDER, Trap.IDENTITY)
#: seconds between the processes, so that clocks read in whole seconds differ
_APART = 1.0
#: as Dask sets them for its workers
_THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
_PROGRAM = "import sys; from headwater.runtime.check_process import main; main(*sys.argv[1:])"


def check(
    outputs: Mapping[str, Any],
    *,
    partitions: int = 3,
    workers: int | None = None,
    options: PlanOptions | None = None,
) -> CheckReport:
    """Run the user functions of a pipeline on sampled partitions in two processes, and compare.

    What comes before a function runs once, as far as the sampled partitions need it; before a shuffle
    that is everything. Sinks are not written. Functions declared ``deterministic=False`` are listed, not run.

    Args:
        outputs: output name to dataset (or node).
        partitions: most partitions of each operator: the first, the last, and some between. Of each, at
            most eight batches are taken.
        workers: local worker processes for what comes before; None computes it in this process.
        options: the planner's numbers.

    Returns:
        What was computed, and for each function the first difference, with its likely cause.

    Raises:
        UserFunctionError: a function raises, each time.
        RunFailedError: a process of the check died.

    Example:
        >>> import headwater as hw
        >>> doubled = hw.range(4, partitions=2).map_batches(lambda batch: {"x": batch["id"] * 2})
        >>> print(hw.check({"doubled": doubled}))
        map_batches(<lambda>) at ...: 2 of 2 partitions, 4 rows, the same
        No difference found: 1 operator, 2 partitions, 4 rows, in 2 processes.
    """
    if partitions < 1:
        raise ParameterError(f"check(partitions={partitions}): give 1 or more.")
    roots = {name: getattr(output, "node", output) for name, output in outputs.items()}
    found = list({node.key: node for node in walk(roots) if isinstance(node, MapBatches)}.values())
    nodes = [node for node in found if node.deterministic]
    checked: dict[str, OperatorCheck] = {}
    if nodes:
        with tempfile.TemporaryDirectory(prefix="headwater-check-") as folder:
            checks = _Check(nodes, partitions, workers, options or PlanOptions(), Path(folder)).run()
            checked = {node.key: check for node, check in zip(nodes, checks)}
    return CheckReport(tuple(checked.get(node.key) or _unchecked(node) for node in found))


class _Check:
    def __init__(
        self, nodes: Sequence[MapBatches], most: int, workers: int | None, options: PlanOptions, folder: Path
    ):
        self.nodes = nodes
        self.folder = folder
        self.samples, self.counts = sample_inputs(nodes, most, workers, options, folder)
        kernels = tuple(
            MapBatchesKernel(n.function, n.output, n.format, n.batch_rows, n.same_length, n.name)
            for n in nodes
        )
        (folder / "job").write_bytes(cloudpickle.dumps(Job(kernels, tuple(self.samples), _MEMORY_BYTES)))
        self.suspects = [find_suspects(node.function) for node in nodes]
        self.outcomes: list[Outcome] = []

    def run(self) -> list[OperatorCheck]:
        """Compute the samples under all conditions, and compare."""
        self._compute([_FIRST])
        self._compute([replace(_SECOND, not_before=time.time() + _APART)])
        checks = self._compared()
        unsure = tuple(n for n, check in enumerate(checks) if not check.difference and self._hashes(n))
        if not unsure:
            return checks
        more = [
            replace(_FIRST, name=f"seed-{seed}", hash_seed=seed, operators=unsure) for seed in _MORE_SEEDS
        ]
        self._compute(more)
        return self._compared()

    def _hashes(self, number: int) -> bool:
        return any(suspect.trap in _HASHED for suspect in self.suspects[number])

    def _compute(self, several: Sequence[Conditions]) -> None:
        with ThreadPoolExecutor(max(1, min(len(several), os.cpu_count() or 1))) as pool:
            for outcomes in pool.map(self._outcomes, several):
                self.outcomes += outcomes

    def _outcomes(self, conditions: Conditions) -> list[Outcome]:
        ended = _run_process(conditions, self.folder)
        if ended.returncode == 0:
            return pickle.loads((self.folder / f"{conditions.name}.outcomes").read_bytes())
        said = ended.stderr.strip()[-2000:] or "it said nothing"
        begun = self.folder / f"{conditions.name}.operator"
        if not begun.exists():
            raise RunFailedError(f"a process of the check ended with code {ended.returncode}:\n{said}")
        node = self.nodes[int(begun.read_text())]
        raise RunFailedError(
            f"{_label(node)} at {location(node.function)} took its process down (code {ended.returncode}):\n{said}"
        )

    def _compared(self) -> list[OperatorCheck]:
        return [self._operator(number, node) for number, node in enumerate(self.nodes)]

    def _operator(self, number: int, node: MapBatches) -> OperatorCheck:
        partitions = tuple(sample.partition for sample in self.samples if sample.operator == number)
        rows, difference = 0, None
        for partition in partitions:
            outcomes = [o for o in self.outcomes if (o.operator, o.partition) == (number, partition)]
            difference = difference or _difference(outcomes)
            rows += outcomes[0].rows
        suspects: tuple[Suspect, ...] = rank(self.suspects[number], difference) if difference else ()
        where = location(node.function)
        return OperatorCheck(
            _label(node), where, True, partitions, self.counts[number], rows, difference, suspects
        )


def _difference(outcomes: Sequence[Outcome]) -> Difference | None:
    """Compare what came out for one sample; first the two calls in one process, as they tell more."""
    first, once, again = outcomes[:3]
    for one, other in [(once, again), *((first, other) for other in outcomes[1:])]:
        if one.error and other.error:
            raise UserFunctionError(one.error)
        if one.error or other.error:
            return Difference(one.partition, None, error=one.error or other.error)
        if one.fingerprint != other.fingerprint:
            assert one.path is not None
            assert other.path is not None
            return compare(read_rows(one.path), read_rows(other.path), one.partition, one is once)
    return None


def _label(node: MapBatches) -> str:
    return f"map_batches({node.name})"


def _unchecked(node: MapBatches) -> OperatorCheck:
    return OperatorCheck(_label(node), location(node.function), deterministic=False)


def _run_process(conditions: Conditions, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / f"{conditions.name}.conditions").write_bytes(pickle.dumps(conditions))
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    environment = {**os.environ, **_THREADS, **conditions.environment(), "PYTHONPATH": path}
    command = [sys.executable, "-P", "-c", _PROGRAM, str(folder), conditions.name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
