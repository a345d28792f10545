"""Worker processes are killed while a run goes on: the same digest, and no more work than it must be."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client, Scheduler, SpecCluster

from headwater.errors import ClusterError, RunFailedError
from headwater.ops.kernel import Kernel
from headwater.ops.partitioner import HashPartitioner
from headwater.ops.source import Source, Split
from headwater.planner.plan import Exchange, PhysicalPlan, ScanLeaf, ShuffleLeaf, Stage, Step
from headwater.runtime.cluster import CONFIG, HeadwaterCluster, start_local
from headwater.runtime.dask_executor import DaskExecutor
from headwater.runtime.driver import Driver, RunOutcome
from headwater.runtime.inline import InlineExecutor

pytestmark = pytest.mark.fault

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SCHEMA = pa.schema([("key", pa.int64()), ("value", pa.int64())])
SUMS = pa.schema([("key", pa.int64()), ("total", pa.int64())])
MAPS, REDUCES, ROWS = 24, 8, 400


def frame(partition: int) -> pd.DataFrame:
    rng = np.random.default_rng(partition)
    return pd.DataFrame({"key": rng.integers(0, 100, ROWS), "value": rng.integers(-99, 99, ROWS)})


class Numbers(Source):
    kind = "numbers"

    def read(self, split: Split, columns: Sequence[str], predicate=None, limit=None) -> Iterator[pa.Table]:
        yield pa.Table.from_pandas(frame(split.index), SCHEMA).select(list(columns))


class Sums(Kernel):
    def run(self, inputs, context):
        table = pa.concat_tables([SCHEMA.empty_table(), *inputs[0]])
        sums = table.group_by("key", use_threads=False).aggregate([("value", "sum")]).sort_by("key")
        yield sums.rename_columns(["key", "total"]).cast(SUMS)


@dataclass
class KillsItself(Kernel):
    """Kills its process on partition 3: once if a token can be made, or always."""

    token: str | None = None

    def run(self, inputs, context):
        for table in inputs[0]:
            if context.partition == 3 and self._strikes():
                os.kill(os.getpid(), signal.SIGKILL)
            yield table

    def _strikes(self) -> bool:
        if self.token is None:
            return True
        try:
            os.close(os.open(self.token, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


@dataclass
class Gate(Kernel):
    """Holds the last partition until somebody writes to a named pipe, so that the stage can't end before."""

    pipe: str

    def run(self, inputs, context):
        if context.partition == MAPS - 1:
            with open(self.pipe, "rb", buffering=0) as pipe:
                pipe.read(1)
        yield from inputs[0]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tuple[Gate, Callable[[], None]]]:
    """A gate and what opens it; the test's own end of the pipe stays open, so that no attempt waits for it."""
    path = str(tmp_path / "gate")
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield Gate(path), lambda: os.write(end, b"." * 64)
    os.close(end)


def plan(kernel: Kernel | None = None) -> PhysicalPlan:
    leaf = ScanLeaf(0, Numbers(), ("key", "value"), None, None, SCHEMA)
    operator = leaf if kernel is None else Step(kernel, (leaf,), SCHEMA)
    splits = {0: tuple(Split(p, ROWS, 48 << 20) for p in range(MAPS))}
    exchange = Exchange(HashPartitioner(("key",), REDUCES))
    step = Step(Sums(), (ShuffleLeaf(0, 0, SCHEMA),), SUMS)
    stages = (
        Stage(0, "k0", "numbers", operator, MAPS, SCHEMA, splits, exchange),
        Stage(1, "k1", "sums", step, REDUCES, SUMS),
    )
    return PhysicalPlan(stages, {"sums": 1})


@pytest.fixture(scope="module")
def clean_digest() -> str:
    executor = InlineExecutor()
    with Driver(plan(), executor) as driver:
        digest = driver.run().report.outputs["sums"].digest
    executor.close()
    return digest


def check(driver: Driver, outcome: RunOutcome, digest: str) -> None:
    assert outcome.report.outputs["sums"].digest == digest
    got = pa.concat_tables(driver.read("sums")).to_pandas()
    expected = pd.concat([frame(p) for p in range(MAPS)]).groupby("key")["value"].sum()
    assert dict(zip(got.key, got.total)) == expected.to_dict()


@pytest.fixture(scope="module")
def cluster() -> Iterator[HeadwaterCluster]:
    """Three workers, each replaced when it dies."""
    cluster, client = start_local(3)
    with cluster, client:
        yield cluster


@pytest.fixture
def one_node(cluster: HeadwaterCluster) -> Iterator[DaskExecutor]:
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=60)
        executor = DaskExecutor(client, direct=True)  # as a session has its own cluster
        yield executor
        executor.close()


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[DaskExecutor, dict[str, Path]]]:
    """A scheduler and two worker processes that don't come back, each with its own scratch folder."""
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard_address": ":0", "dashboard": False, "host": "127.0.0.1", "port": 0},
    }
    with (
        dask.config.set(CONFIG),
        SpecCluster({}, scheduler, silence_logs=50) as cluster,
        Client(cluster.scheduler_address, set_as_default=False) as client,
    ):
        processes = [start_worker(cluster.scheduler_address, tmp_path / name) for name in ("a", "b")]
        try:
            client.wait_for_workers(2, timeout=60)
            executor = DaskExecutor(client)
            scratch = client.run(lambda: os.environ["HEADWATER_SCRATCH"])
            yield executor, {address: Path(path) for address, path in scratch.items()}
            executor.close()
        finally:
            for process in processes:
                process.kill()
                process.wait()


def start_worker(address: str, scratch: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1"]
    return subprocess.Popen(
        [*command, "--no-dashboard", "--local-directory", f"{scratch}-dask"],
        env={**os.environ, "HEADWATER_SCRATCH": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def strike(
    executor: DaskExecutor, ready: Callable, then: Callable = lambda address: None, whom: Callable = min
) -> Callable:
    """Make an observer that kills one worker process, once, when a snapshot is ready for it."""
    pids = executor.client.run(os.getpid)
    killed: list[str] = []

    def observe(snapshot) -> None:
        if not killed and ready(snapshot):
            killed.append(whom(pids))
            os.kill(pids[killed[0]], signal.SIGKILL)
            then(killed[0])

    return observe


def test_process_that_dies_takes_only_its_running_tasks_along(one_node, clean_digest, tmp_path):
    kernel = KillsItself(str(tmp_path / "token"))
    with Driver(plan(kernel), one_node) as driver:
        outcome = driver.run()
        check(driver, outcome, clean_digest)
    recovery = outcome.report.recovery
    assert (recovery.workers_lost, recovery.nodes_lost) == (1, 0)
    assert recovery.partitions_rerun == {}
    assert recovery.tasks_retried + recovery.backups >= 1  # a backup may have it already


def test_process_killed_from_outside(one_node, clean_digest, gate):
    kernel, open_gate = gate
    observe = strike(
        one_node, lambda snapshot: snapshot.stages[0].done >= MAPS // 3, lambda address: open_gate()
    )
    with Driver(plan(kernel), one_node, observer=observe) as driver:
        outcome = driver.run()
        check(driver, outcome, clean_digest)
    assert outcome.report.recovery.workers_lost == 1


def test_node_that_dies_costs_the_blocks_it_held_and_no_more(two_nodes, clean_digest, gate):
    executor, scratch = two_nodes
    kernel, open_gate = gate
    held: set[int] = set()

    def blocks(address: str) -> set[int]:
        scheduler = driver.scheduler
        node = next(w.node for w in scheduler.placement.workers.values() if w.address == address)
        return set(scheduler.stages[0].on_node(node).tolist())

    def after(address: str) -> None:
        shutil.rmtree(scratch[address])
        held.update(blocks(address))
        open_gate()

    def richest(addresses) -> str:  # the other one may still be in its first task
        return max(addresses, key=lambda address: len(blocks(address)))

    observe = strike(executor, lambda snapshot: snapshot.stages[0].done >= MAPS // 2, after, richest)
    with Driver(plan(kernel), executor, observer=observe) as driver:
        outcome = driver.run()
        check(driver, outcome, clean_digest)
    recovery = outcome.report.recovery
    assert (recovery.workers_lost, recovery.nodes_lost) == (1, 1)
    assert held
    assert held <= set(recovery.partitions_rerun["0"]) < set(range(MAPS))


def test_task_that_kills_every_worker_ends_the_run_with_its_name(one_node):
    with (
        pytest.raises(RunFailedError, match=r"numbers: partitions? .* took 4 workers down"),
        Driver(plan(KillsItself()), one_node) as driver,
    ):
        driver.run()


def test_no_worker_left_ends_the_run_in_time(two_nodes):
    executor, _ = two_nodes
    pids = executor.client.run(os.getpid)

    def observe(snapshot) -> None:
        while pids:
            os.kill(pids.popitem()[1], signal.SIGKILL)

    with (
        pytest.raises(ClusterError, match="no worker for"),
        Driver(plan(), executor, observer=observe, worker_timeout=0.5) as driver,
    ):
        driver.run()
