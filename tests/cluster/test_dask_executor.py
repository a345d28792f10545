"""One suite that every executor must pass: shuffle and sort against pandas, streams, sinks, failures."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

from headwater.errors import (
    ClusterError,
    ParameterError,
    SerializationError,
    UserFunctionError,
)
from headwater.lineage.journal import Journal, list_runs, read
from headwater.ops.kernel import Kernel
from headwater.ops.ordering import SortKey
from headwater.ops.partitioner import HashPartitioner, RangePartitioner
from headwater.ops.sink import Sink, StagedFile
from headwater.ops.source import Source, Split
from headwater.ops.user_functions import call
from headwater.planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    Exchange,
    PhysicalPlan,
    ScanLeaf,
    ShuffleLeaf,
    Stage,
    Step,
)
from headwater.runtime.cluster import CONFIG, HeadwaterCluster, join, open_executor, start_local
from headwater.runtime.dask_executor import DaskExecutor
from headwater.runtime.driver import Driver
from headwater.runtime.inline import InlineExecutor
from headwater.runtime.short_batches import INTERVAL_SECONDS
from headwater.runtime.versions import mismatches

pytestmark = pytest.mark.cluster

# workers don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SCHEMA = pa.schema([("key", pa.int64()), ("value", pa.int64())])
SUMS = pa.schema([("key", pa.int64()), ("total", pa.int64())])
PARTS, ROWS = 6, 500


def frame(partition: int) -> pd.DataFrame:
    rng = np.random.default_rng(partition)
    return pd.DataFrame({"key": rng.integers(0, 40, ROWS), "value": rng.integers(-99, 99, ROWS)})


def everything() -> pd.DataFrame:
    return pd.concat([frame(p) for p in range(PARTS)], ignore_index=True)


class Numbers(Source):
    kind = "numbers"

    def read(self, split: Split, columns: Sequence[str], predicate=None, limit=None) -> Iterator[pa.Table]:
        yield pa.Table.from_pandas(frame(split.index), SCHEMA).select(list(columns))


class Sums(Kernel):
    def run(self, inputs, context):
        table = pa.concat_tables([SCHEMA.empty_table(), *inputs[0]])
        sums = table.group_by("key", use_threads=False).aggregate([("value", "sum")]).sort_by("key")
        yield sums.rename_columns(["key", "total"]).cast(SUMS)


class Sorted(Kernel):
    def run(self, inputs, context):
        table = pa.concat_tables([SCHEMA.empty_table(), *inputs[0]])
        yield table.sort_by([("key", "ascending"), ("value", "ascending")])


@dataclass
class Failing(Kernel):
    error: Exception

    def run(self, inputs, context):
        for table in inputs[0]:
            if context.partition == 2:
                raise self.error
            yield table


@dataclass
class Calling(Kernel):
    function: Callable[[pa.Table], object]

    def run(self, inputs, context):
        for table in inputs[0]:
            call(self.function, table, "function", table, context)
            yield table


class Locked(Exception):
    def __init__(self):
        super().__init__("shut")
        self.lock = threading.Lock()


def raises_unpicklable(table):
    raise Locked


def in_other_processes(table):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]


class Appended(Kernel):
    """Each partition, and after it the broadcast table."""

    def run(self, inputs, context):
        yield from inputs[0]
        yield inputs[1].table()


class Holding(Kernel):
    def __init__(self):
        self.lock = open(sys.executable, "rb")  # noqa: SIM115


@dataclass
class Folder(Sink):
    """Stages JSON files and moves the winners."""

    path: str
    fail: bool = False

    def stage(self, run, partition, attempt, stream, schema):
        staging = Path(self.path) / f"_{run}"
        staging.mkdir(parents=True, exist_ok=True)
        rows = pa.concat_tables([schema.empty_table(), *stream]).to_pylist()
        name = f"{partition}-{attempt}.json"
        (staging / name).write_text(json.dumps(rows))
        return [StagedFile(name, f"{partition}.json", len(rows), (staging / name).stat().st_size)]

    def commit(self, run, files):
        if self.fail:
            raise OSError("no commit")
        for file in files:
            (Path(self.path) / f"_{run}" / file.path).rename(Path(self.path) / file.target)
        self.abort(run)

    def abort(self, run):
        for file in (Path(self.path) / f"_{run}").glob("*"):
            file.unlink()
        if (Path(self.path) / f"_{run}").exists():
            (Path(self.path) / f"_{run}").rmdir()

    def describe(self):
        return "folder"


def scan(exchange=None, kernel=None, **more) -> Stage:
    leaf = ScanLeaf(0, Numbers(), ("key", "value"), None, None, SCHEMA)
    operator = leaf if kernel is None else Step(kernel, (leaf,), SCHEMA)
    splits = {0: tuple(Split(p, ROWS, 40 << 20) for p in range(PARTS))}
    return Stage(0, "k0", "numbers", operator, PARTS, SCHEMA, splits, exchange, **more)


def sums_plan(count: int = 4) -> PhysicalPlan:
    step = Step(Sums(), (ShuffleLeaf(0, 0, SCHEMA),), SUMS)
    exchange = Exchange(HashPartitioner(("key",), count))
    return PhysicalPlan((scan(exchange), Stage(1, "k1", "sums", step, count, SUMS)), {"sums": 1})


def sort_plan(count: int = 3) -> PhysicalPlan:
    keys = (SortKey("key"), SortKey("value"))
    cut = Exchange(RangePartitioner(keys, count), boundaries_from=0)
    stages = (
        scan(sample=keys),
        Stage(1, "k1", "cut", BlockLeaf(0, 0, SCHEMA), PARTS, SCHEMA, exchange=cut),
        Stage(2, "k2", "sort", Step(Sorted(), (ShuffleLeaf(0, 1, SCHEMA),), SCHEMA), count, SCHEMA),
    )
    return PhysicalPlan(stages, {"sorted": 2})


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    """Two worker processes with a scratch folder each, as two machines would have."""
    import dask

    roots = [tmp_path_factory.mktemp(name) for name in ("a", "b")]
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "env": {"HEADWATER_SCRATCH": str(root)},
                "local_directory": str(root / "dask"),
                "dashboard": False,
            },
        }
        for number, root in enumerate(roots)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard_address": ":0", "dashboard": False, "host": "127.0.0.1", "port": 0},
    }
    with (
        dask.config.set(CONFIG),
        SpecCluster(workers, scheduler, silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2)
        executor = DaskExecutor(client)
        yield executor
        assert [list(root.rglob("*.arrow")) for root in roots] == [[], []], "runs leave no blocks"
        executor.close()


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    cluster, client = start_local(2, scratch=tmp_path_factory.mktemp("threads"), processes=False)
    with cluster, client:
        yield DaskExecutor(client, scratch=str(tmp_path_factory.mktemp("scratch")))


@pytest.fixture(scope="module")
def direct(two_nodes):
    """The same processes, as a session has those of its own cluster: tasks don't go by way of Dask's scheduler."""
    yield DaskExecutor(two_nodes.client, direct=True)
    assert not two_nodes.client.futures


@pytest.fixture(
    scope="module", params=["inline", "inline on 2 nodes", "threads", "processes on 2 nodes", "direct"]
)
def executor(request):
    if request.param in ("threads", "direct"):
        yield request.getfixturevalue(request.param)
    elif request.param == "processes on 2 nodes":
        yield request.getfixturevalue("two_nodes")
    else:
        inline = InlineExecutor(workers=3, nodes=2) if "2" in request.param else InlineExecutor()
        yield inline
        inline.close()


def test_shuffle_gives_the_sums_of_pandas(executor, tmp_path):
    with Driver(sums_plan(), executor, Journal.create(tmp_path)) as driver:
        outcome = driver.run()
        got = pa.concat_tables(driver.read("sums")).to_pandas()
    expected = everything().groupby("key", as_index=False)["value"].sum()
    assert dict(zip(got.key, got.total)) == dict(zip(expected.key, expected.value))
    report = outcome.report.to_dict()
    assert report["outputs"]["sums"]["rows"] == len(expected)
    assert [stage["rows_in"] for stage in report["stages"]] == [PARTS * ROWS] * 2
    again = sum(stage["attempts"] - stage["tasks"] for stage in report["stages"])
    assert again == report["recovery"]["backups"]  # on a busy machine
    assert list_runs(tmp_path)[0].state == "finished"


def test_sort_gives_the_order_of_pandas_and_the_same_digest_everywhere(executor):
    with Driver(sort_plan(), executor) as driver:
        digest = driver.run().report.outputs["sorted"].digest
        got = pa.concat_tables(driver.read("sorted")).to_pandas()
    expected = everything().sort_values(["key", "value"], ignore_index=True)
    pd.testing.assert_frame_equal(got, expected)
    with Driver(sort_plan(7), InlineExecutor()) as driver:
        assert driver.run().report.outputs["sorted"].digest == digest


def test_output_streams_in_order_while_the_run_goes_on(executor):
    with Driver(sort_plan(), executor, stream="sorted") as driver:
        tables = list(driver.iter_output("sorted", look_ahead=1))
    expected = everything().sort_values(["key", "value"], ignore_index=True)
    pd.testing.assert_frame_equal(pa.concat_tables(tables).to_pandas(), expected)


def test_stream_can_be_left_early(executor, tmp_path):
    with Driver(sort_plan(), executor, Journal.create(tmp_path), stream="sorted") as driver:
        stream = driver.iter_output("sorted")
        assert next(stream).num_rows > 0
        stream.close()
    assert list_runs(tmp_path)[0].state == "stopped"


def test_two_runs_at_once_do_not_disturb_each_other(executor):
    with Driver(sort_plan(), executor, stream="sorted") as slow:
        stream = slow.iter_output("sorted")
        first = next(stream)
        with Driver(sums_plan(), executor) as other:
            rows = other.run().report.outputs["sums"].rows
        rest = list(stream)
    assert rows == everything().key.nunique()
    assert sum(table.num_rows for table in [first, *rest]) == PARTS * ROWS


def test_sink_is_committed_once_and_journalled_around_it(executor, tmp_path):
    plan = PhysicalPlan((scan(sink=Folder(str(tmp_path / "out"))),), {"out": 0})
    with Driver(plan, executor, Journal.create(tmp_path / "runs")) as driver:
        outcome = driver.run()
    names = [f"{p}.json" for p in range(PARTS)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert [file.target for file in outcome.outputs["out"].files] == names
    assert json.loads((tmp_path / "out" / "3.json").read_text()) == frame(3).to_dict("records")
    kinds = [record[0] for record in read(driver.run_id, tmp_path / "runs")]
    assert kinds[-3:] == ["committing", "committed", "finished"]
    assert kinds.index("committing") > max(i for i, kind in enumerate(kinds) if kind == "task")


@pytest.mark.parametrize("error", [UserFunctionError("row 7 is bad"), ZeroDivisionError("by zero")])
def test_error_of_a_task_fails_the_run_once_and_leaves_nothing(executor, tmp_path, error):
    stage = scan(kernel=Failing(error), sink=Folder(str(tmp_path / "out")))
    with (
        pytest.raises(type(error), match=str(error)),
        Driver(PhysicalPlan((stage,), {"out": 0}), executor, Journal.create(tmp_path / "runs")) as driver,
    ):
        driver.run()
    assert list((tmp_path / "out").glob("*")) == []
    entry = list_runs(tmp_path / "runs")[0]
    assert entry.state == "failed"
    assert str(error) in entry.error


def test_error_whose_cause_can_not_be_pickled_keeps_its_type(two_nodes):
    kernel = Calling(raises_unpicklable)
    with (
        pytest.raises(UserFunctionError, match="raised Locked: shut"),
        Driver(PhysicalPlan((scan(kernel=kernel),), {"out": 0}), two_nodes) as driver,
    ):
        driver.run()


def test_function_that_exits_is_an_error_of_the_user_and_costs_no_worker(two_nodes):
    before = two_nodes.workers()
    kernel = Calling(lambda table: sys.exit(3))
    with (
        pytest.raises(UserFunctionError, match="raised SystemExit: 3"),
        Driver(PhysicalPlan((scan(kernel=kernel),), {"out": 0}), two_nodes) as driver,
    ):
        driver.run()
    assert two_nodes.workers() == before


def test_function_may_start_processes(two_nodes):
    plan = PhysicalPlan((scan(kernel=Calling(in_other_processes)),), {"out": 0})
    with Driver(plan, two_nodes) as driver:
        assert driver.run().report.outputs["out"].rows == PARTS * ROWS


def test_workers_forget_a_run_that_is_closed(two_nodes):
    def kept(dask_worker):
        runtime = dask_worker.headwater
        return len(runtime._programs) + len(runtime.broadcasts._entries) + len(runtime.running())

    leaf = ScanLeaf(0, Numbers(), ("key", "value"), None, None, SCHEMA)
    splits = tuple(Split(p, ROWS, 40 << 20) for p in range(PARTS))
    step = Step(Appended(), (leaf, BroadcastLeaf(1, 0, SCHEMA)), SCHEMA)
    stages = (
        Stage(0, "k0", "small", leaf, 1, SCHEMA, {0: splits[:1]}),
        Stage(1, "k1", "appended", step, PARTS, SCHEMA, {0: splits}),
    )
    with Driver(PhysicalPlan(stages, {"out": 1}), two_nodes) as driver:
        driver.run()
        assert all(two_nodes.client.run(kept).values())
    assert not any(two_nodes.client.run(kept).values())


def test_failed_commit_is_told_and_aborted(executor, tmp_path):
    plan = PhysicalPlan((scan(sink=Folder(str(tmp_path / "out"), fail=True)),), {"out": 0})
    with pytest.raises(OSError, match="no commit"), Driver(plan, executor) as driver:
        driver.run()
    assert list((tmp_path / "out").glob("*")) == []


def test_interrupt_stops_cleanly(executor, tmp_path):
    def interrupt(snapshot):
        raise KeyboardInterrupt

    stage = scan(sink=Folder(str(tmp_path / "out")))
    plan = PhysicalPlan((stage,), {"out": 0})
    with (
        pytest.raises(KeyboardInterrupt),
        Driver(plan, executor, Journal.create(tmp_path), interrupt) as driver,
    ):
        driver.run()
    assert list_runs(tmp_path)[0].state == "interrupted"
    assert list((tmp_path / "out").glob("*")) == []


def test_program_that_can_not_be_pickled_is_named(executor):
    plan = PhysicalPlan((scan(kernel=Holding()),), {"out": 0})
    with pytest.raises(SerializationError, match="numbers"), Driver(plan, executor) as driver:
        driver.run()


def test_results_that_no_worker_is_asked_for_come_by_way_of_dask(two_nodes, monkeypatch):
    with Driver(sums_plan(), two_nodes) as driver:
        outcome = driver.run()
        expected = outcome.outputs["sums"].fingerprints
    monkeypatch.setattr("headwater.runtime.dask_channel._MOST_LISTENING", 0)
    with Driver(sums_plan(), two_nodes) as driver:
        assert driver.run().outputs["sums"].fingerprints == expected
    assert two_nodes.listening == 0


def test_schedulers_learn_what_waits_and_send_tasks_at_once(two_nodes):
    def look(dask_scheduler):
        pauses = [stream.interval for stream in dask_scheduler.stream_comms.values()]
        return dask_scheduler.adaptive_target.__self__.name, max(pauses)

    plugin, pause = two_nodes.client.run_on_scheduler(look)
    assert plugin == "headwater-demand"
    assert pause == INTERVAL_SECONDS
    with Driver(sums_plan(), two_nodes) as driver:
        driver.run()
    assert two_nodes.client.scheduler_comm.interval == INTERVAL_SECONDS


def test_large_programs_run(executor):
    kernel = Failing(ValueError("x" * 200_000))
    stage = scan(kernel=kernel)
    with (
        pytest.raises(ValueError, match="xxx"),
        Driver(PhysicalPlan((stage,), {"out": 0}), executor) as driver,
    ):
        driver.run()


def test_progress_reaches_the_total(executor):
    seen = []
    with Driver(sums_plan(), executor, observer=seen.append) as driver:
        driver.run()
    assert [(s.done, s.total, s.state) for s in seen[-1].stages] == [(6, 6, "finished"), (4, 4, "finished")]
    done = [sum(stage.done for stage in snapshot.stages) for snapshot in seen]
    assert done == sorted(done)


def test_remote_bytes_are_told_from_local_ones(two_nodes):
    with Driver(sums_plan(), two_nodes) as driver:
        stage = driver.run().report.stages[1]
        exchanged = driver.scheduler.stages[0].block_bytes.sum()
    assert stage.local_bytes > 0
    assert stage.remote_bytes > 0
    assert stage.local_bytes + stage.remote_bytes == exchanged


def test_blocks_lost_after_the_run_are_made_again_when_read():
    executor = InlineExecutor(workers=2, nodes=2)
    with Driver(sort_plan(), executor) as driver:
        last = driver.run().outputs["sorted"].blocks[-1]
        tables = driver.read("sorted")
        first = next(tables)
        executor.lose(next(worker.address for worker in executor.workers() if worker.node == last.node))
        rows = pa.concat_tables([first, *tables]).to_pandas()
        assert driver.report().recovery.nodes_lost == 1
    pd.testing.assert_frame_equal(rows, everything().sort_values(["key", "value"], ignore_index=True))
    executor.close()


def test_wrong_address_and_silent_scheduler_are_told_apart():
    with pytest.raises(ParameterError, match=r"Did you mean 'tcp://localhost:8786'"):
        join("localhost:8786")
    with pytest.raises(ParameterError, match="isn't the address"):
        join("scheduler")
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 within 1"):
        join("tcp://127.0.0.1:9", timeout=1)


def test_scheduler_without_workers_is_named():
    with (
        HeadwaterCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        pytest.raises(ClusterError, match="has no workers"),
    ):
        join(cluster.scheduler_address, timeout=1)


def test_joined_cluster_runs_and_stays_up():
    cluster, client = start_local(1, processes=False)
    with cluster, client:
        executor = open_executor(cluster.scheduler_address)
        with Driver(sums_plan(), executor) as driver:
            driver.run()
        executor.close()
        assert len(client.scheduler_info()["workers"]) == 1


def test_script_without_a_main_guard_can_start_a_cluster(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from headwater.runtime.cluster import start_local\n"
        "def where(): import os; return os.getpid()\n"
        "cluster, client = start_local(1)\n"
        "import os; print(client.submit(where).result() != os.getpid())\n"
        "client.close(); cluster.close()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_scratch_of_a_local_cluster_goes_with_it():
    cluster, client = start_local(1, processes=False)
    folder = Path(cluster.scratch_to_remove)
    assert folder.exists()
    client.close()
    cluster.close()
    assert not folder.exists()


def test_versions_are_compared_with_each_worker():
    def info(**packages):
        return {
            "host": {"python": packages.pop("python", "3.11.7")},
            "packages": {"headwater": "1.0.0", **packages},
        }

    same = {
        "dask": "2026.8.0",
        "distributed": "2026.8.0",
        "numpy": "2.4.6",
        "pyarrow": "26.0.0",
        "cloudpickle": "3.1",
    }
    workers = {
        "tcp://a:1": info(**same),
        "tcp://b:1": info(**{**same, "pyarrow": "25.0.0"}),
        "tcp://c:1": info(**{**same, "headwater": None}),
        "tcp://d:1": info(**same, python="3.12.1"),
        "tcp://e:1": info(**{**same, "numpy": "2.4.1"}),
    }
    lines = mismatches(
        {"client": info(**same), "scheduler": info(**{**same, "dask": "2025.1.0"}), "workers": workers}
    )
    assert [line.split(":")[0] for line in lines] == ["scheduler", "worker tcp", "worker tcp", "worker tcp"]
    assert "dask 2025.1.0 (here 2026.8.0)" in lines[0]
    assert "pyarrow 25.0.0 (here 26.0.0)" in lines[1]
    assert "install headwater==1.0.0 on the workers" in lines[2]
    assert "python 3.12.1 (here 3.11.7)" in lines[3]


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ParameterError, match="at least 1"):
        start_local(0)
    with pytest.raises(ParameterError, match="memory_limit='lots'"):
        start_local(1, memory_limit="lots")
    with pytest.raises(ParameterError, match="at least one worker to each node"):
        InlineExecutor(1, nodes=2)
