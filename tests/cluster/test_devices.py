"""Workers that own a GPU, which `tests/emulation` stands for: how they are bound, found and used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
from distributed import LocalCluster, Nanny

import headwater as hw
from headwater import session as sessions
from headwater.errors import ClusterError
from headwater.ops import objectives, optim
from headwater.ops.device.discovery import visible_devices
from headwater.runtime.devices.claim import claim

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

cloudpickle.register_pickle_by_value(sys.modules[__name__])

EMULATION = str(Path(__file__).parents[1] / "emulation")
QUIET = {"progress": False, "journal": False}
#: several partitions of few rows
SMALL = {"journal": False, "options": hw.PlanOptions(partition_bytes=256 << 10)}


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two emulated devices, for this process and the workers that it starts."""
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(EMULATION)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([EMULATION, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HEADWATER_BACKEND", "cupy")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)


def bound() -> tuple[str | None, str, bool]:
    """What a worker process was given, and whether it has imported CuPy."""
    return (
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        os.environ.get("HEADWATER_BACKEND", ""),
        "cupy" in sys.modules,
    )


def where(table: pa.Table) -> pa.Table:
    """Write beside each row on which device and with which arrays it was made."""
    from headwater.ops.backend import array_namespace

    time.sleep(0.05)
    text = f"{os.environ.get('CUDA_VISIBLE_DEVICES')}/{array_namespace().__name__}"
    return table.append_column("where", pa.array([text] * table.num_rows, pa.string()))


def places(session: hw.Session, device: str, monkeypatch: pytest.MonkeyPatch, partitions: int = 8) -> Counter:
    """Run a stage that the planner has put on a device; how many rows were made where."""
    whole = sessions._plan

    def placed(*arguments):
        optimized, physical = whole(*arguments)
        stages = tuple(replace(stage, device=device) for stage in physical.stages)
        return optimized, replace(physical, stages=stages)

    monkeypatch.setattr(sessions, "_plan", placed)
    rows = hw.range(8 * partitions, partitions=partitions).map_batches(where, format="arrow")
    table = session.run({"rows": rows}).table("rows")
    assert table["id"].to_pylist() == list(range(8 * partitions))
    return Counter(table["where"].to_pylist())


def test_a_local_session_binds_a_worker_to_each_device(two_devices, monkeypatch):
    with hw.Session(**QUIET) as session:
        given = sorted(session._executor.client.run(bound).values())
        assert given == [("", "numpy", False)] * 2 + [("0", "cupy", True), ("1", "cupy", True)]
        assert session._executor.gpu_workers() == 2
        infos = [info for info in session._executor.devices().values() if info is not None]
        assert sorted(info.identity.split("/")[1] for info in infos) == ["0000:0:00.0", "0000:1:00.0"]
        assert {(info.name, info.sharers, info.count) for info in infos} == {("emulated", 1, 1)}
        assert set(places(session, "gpu", monkeypatch)) <= {"0/cupy", "1/cupy"}
        assert all(place.endswith("/numpy") for place in places(session, "cpu", monkeypatch))


def test_more_workers_than_devices_share_them(two_devices):
    with hw.Session(workers=3, device="gpu", **QUIET) as session:
        infos = list(session._executor.devices().values())
        assert sorted(info.sharers for info in infos) == [1, 2, 2]
        assert sorted(v[0] for v in session._executor.client.run(bound).values()) == ["0", "0", "1"]


def test_no_device_is_used_by_a_session_that_wants_none(two_devices, monkeypatch):
    with hw.Session(workers=2, device="cpu", **QUIET) as session:
        assert session._executor.gpu_workers() == 0
        assert not any(imported for _, _, imported in session._executor.client.run(bound).values())
        assert all(place.endswith("/numpy") for place in places(session, "gpu", monkeypatch))


def test_workers_without_a_device_import_no_cupy(monkeypatch):
    monkeypatch.delenv("HEADWATER_BACKEND", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on a machine with a driver, too
    monkeypatch.setattr("headwater.ops.device.discovery._DRIVER", ())
    assert visible_devices() == []
    with hw.Session(workers=1, **QUIET) as session:
        assert session._executor.devices() == dict.fromkeys(session._executor.devices())
        assert not any(imported for *_, imported in session._executor.client.run(bound).values())


def test_a_device_that_is_not_there_is_asked_for_in_vain(monkeypatch):
    monkeypatch.setenv("HEADWATER_BACKEND", "numpy")
    with pytest.raises(ClusterError, match=r"HEADWATER_BACKEND=numpy.*Session\(device='auto'\)"):
        hw.Session(device="gpu", **QUIET).start()
    with pytest.raises(ClusterError, match="this process: no GPU"):
        hw.Session("inline", device="gpu", **QUIET).start()
    with pytest.raises(hw.HeadwaterError, match="Session\\(device='gpus'\\)"):
        hw.Session(device="gpus", **QUIET)


def test_a_cluster_that_is_joined_tells_what_its_workers_have(two_devices, monkeypatch):
    with hw.Session(workers=1, device="cpu", **QUIET) as plain:
        address = plain._executor.address
        with pytest.raises(
            ClusterError, match=r"no worker has a GPU that it can use:\n  tcp://.*: no GPU\nJoin"
        ):
            hw.Session(address, device="gpu", **QUIET).start()
    with hw.Session(workers=2, **QUIET) as local:
        address = local._executor.address
        with hw.Session(address, device="gpu", **QUIET) as session:
            assert session._executor.gpu_workers() == 2
            assert set(places(session, "gpu", monkeypatch)) <= {"0/cupy", "1/cupy"}


def test_threads_with_streams_of_their_own_use_no_device(two_devices, monkeypatch):
    monkeypatch.setenv("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", "1")
    with pytest.raises(
        ClusterError, match=r"this process: CUPY_CUDA_PER_THREAD_DEFAULT_STREAM is set.*unset it"
    ):
        hw.Session("inline", device="gpu", **QUIET).start()


def test_a_run_in_this_process_uses_its_device(two_devices, monkeypatch):
    with hw.Session("inline", **QUIET) as session:
        assert session._executor.gpu_workers() == 4
        assert set(places(session, "gpu", monkeypatch)) == {"0,1/cupy"}


def test_processes_that_nobody_binds_spread_over_devices(tmp_path):
    assert [claim(["0", "1"], tmp_path) for _ in range(4)] == [("0", 0), ("1", 0), ("0", 1), ("1", 1)]


def rows(count: int = 1003) -> hw.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6))
    columns = {f"x{i}": x[:, i] for i in range(6)}
    return hw.from_arrow({**columns, "y": (x.sum(1) > 0).astype(np.int64)}, partitions=3)


def model(workers: int | None, kind: str) -> hw.Model:
    options: dict = {
        "features": [f"x{i}" for i in range(6)],
        "seed": 3,
        "strategy": hw.AllReduce(workers=workers),
    }
    if kind == "k-means":
        return hw.train(rows(), objective=objectives.KMeans(5), **options)
    if kind == "sharded":
        options["strategy"] = hw.AllReduce(workers=workers, sharded_state=True)
    return hw.train(
        rows(),
        target="y",
        objective=objectives.MLP((16, 8), task="binary"),
        optimizer=optim.adam(1e-2),
        batch_size=200,
        epochs=2,
        **options,
    )


@pytest.mark.parametrize("kind", ["mlp", "k-means", "sharded"])
def test_a_gang_exchanges_between_its_devices_and_trains_the_same_model(two_devices, kind):
    found = {}
    with hw.Session(workers=2, device="gpu", **QUIET) as session:
        for members in (1, 2):
            result = session.run({"model": model(members, kind)})
            (log,) = [stage.training for stage in result.report.stages if stage.training]
            found[members] = result.digest("model"), log["members"], log["transport"]
    assert found[1][1:] == (1, "nccl")
    assert found[2][1:] == (2, "nccl")
    assert found[1][0] == found[2][0]


@pytest.mark.parametrize("kind", ["mlp", "sharded"])
def test_members_that_share_a_device_exchange_in_its_memory(two_devices, monkeypatch, kind):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with hw.Session(workers=2, device="gpu", **QUIET) as session:
        digests = set()
        for members, transport in [(1, "nccl"), (2, "ipc"), (2, "host")]:
            if transport == "host":
                session._executor.client.run(refuse_ipc)
            result = session.run({"model": model(members, kind)})
            (log,) = [stage.training for stage in result.report.stages if stage.training]
            digests.add(result.digest("model"))
            assert (log["members"], log["transport"]) == (members, transport)
        assert log["generations"] > 1  # the first one came to nothing
        assert len(digests) == 1


@pytest.mark.parametrize(("devices", "transport"), [("0,1,2", "nccl"), ("0", "ipc")])
def test_a_member_that_is_killed_between_exchanges_is_done_without(
    two_devices, monkeypatch, devices, transport
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    victims: list[int] = []

    def watch(snapshot) -> None:
        """Kill a worker other than the one with the task, once training is under way."""
        step = max((dict(stage.metrics or {}).get("loss", -1.0) for stage in snapshot.stages), default=-1.0)
        if step >= 0 and not victims:
            pids = session._executor.client.run(os.getpid)
            idle = [address for address, count in busy().items() if not count]
            victims.append(pids[idle[0]])
            os.kill(victims[0], signal.SIGKILL)

    def busy() -> dict[str, int]:
        return session._executor.client.run(
            lambda dask_worker: len(dask_worker.headwater.running()),
            workers=list(session._executor.devices()),
        )

    with hw.Session(workers=3, device="gpu", progress=watch, journal=False) as session:
        long = hw.train(
            rows(),
            target="y",
            objective=objectives.LogisticRegression(),
            optimizer=optim.adam(1e-2),
            batch_size=50,
            epochs=10,
            features=[f"x{i}" for i in range(6)],
            seed=3,
        )
        killed = session.run({"model": long})
        (log,) = [stage.training for stage in killed.report.stages if stage.training]
    assert victims
    assert log["generations"] > 1
    assert log["transport"] == transport
    with hw.Session(workers=1, device="gpu", **QUIET) as alone:
        assert alone.run({"model": long}).digest("model") == killed.digest("model")


def test_worker_processes_of_a_node_are_bound_in_turn(two_devices, tmp_path):
    """As `headwater worker --workers 3` starts them on a machine with two devices."""
    scheduler = LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=None)
    with scheduler, ExitStack() as stack:
        command = [sys.executable, "-P", "-m", "headwater.cli", "worker", scheduler.scheduler_address]
        options = ["--workers=3", "--nthreads=1", f"--scratch={tmp_path}"]
        workers = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
        stack.callback(workers.wait, 30)
        stack.callback(workers.terminate)
        scheduler.wait_for_workers(3, timeout=60)
        with hw.Session(scheduler.scheduler_address, device="gpu", **QUIET) as session:
            found = [info for info in session._executor.devices().values() if info is not None]
            devices = Counter(info.identity.split(":")[1] for info in found)
            assert devices == {"0": 2, "1": 1}
            assert all(info.sharers == devices[info.identity.split(":")[1]] for info in found)


@pytest.mark.parametrize(("given", "device"), [("1,0", "1"), ("0", "0")])
def test_a_worker_keeps_the_device_that_it_was_given(two_devices, monkeypatch, given, device):
    """As those that dask-cuda starts, whose own device is the first of all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with (
        LocalCluster(
            n_workers=1, processes=True, dashboard_address=None, worker_class=Nanny, env=dict(os.environ)
        ) as cluster,
        hw.Session(cluster.scheduler_address, device="gpu", **QUIET) as session,
    ):
        (info,) = session._executor.devices().values()
        assert info.identity.endswith(f"/0000:{device}:00.0")


def test_a_worker_that_is_to_have_no_device_has_none(two_devices):
    with (
        LocalCluster(
            n_workers=1, dashboard_address=None, resources={"GPU": 0}, env=dict(os.environ)
        ) as cluster,
        hw.Session(cluster.scheduler_address, **QUIET) as session,
    ):
        assert session._executor.gpu_workers() == 0


def refuse_nccl() -> None:
    """Let NCCL fail as it does where its members can't reach each other."""
    import importlib

    nccl = importlib.import_module("cupy.cuda.nccl")
    nccl.device_name = lambda: "the same for all"


def test_a_gang_goes_on_without_nccl_where_that_fails(two_devices):
    with hw.Session(workers=2, device="gpu", **QUIET) as session:
        alone = session.run({"model": model(1, "mlp")}).digest("model")
        session._executor.client.run(refuse_nccl)
        result = session.run({"model": model(2, "mlp")})
        (log,) = [stage.training for stage in result.report.stages if stage.training]
        assert (log["members"], log["transport"]) == (2, "ipc")
        assert log["generations"] > 1
        assert result.digest("model") == alone


def exchanged(partitions: int = 6, count: int = 40_000) -> dict[str, hw.Dataset]:
    """A pipeline with exchanges between stages on GPUs: strings, nulls, floats whose sums depend on the order."""
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "k": rng.integers(0, 200, count),
            "x": pa.array(rng.lognormal(size=count), mask=rng.random(count) < 0.1),
            "mode": pa.array(np.array(["air", "ship", "rail"])[rng.integers(0, 3, count)]),
            "n": np.arange(count),
        }
    )
    rows = hw.from_arrow(table, partitions=partitions).filter(hw.col("n") % 7 != 3)
    moved = rows.with_columns(y=hw.col("x") * 1.5).repartition(4, by="k").filter(hw.col("y") > 0.5)
    sums = moved.group_by("k", "mode").agg(total=hw.sum("y"), n=hw.count(), least=hw.min("n"))
    ordered = moved.select("n", "mode", "y").sort("mode", "y", "n")
    return {"sums": sums, "moved": moved.select("n", "mode", "y"), "ordered": ordered}


def shared_counts(session: hw.Session) -> Counter:
    """What the workers lent each other, all together, once they have let go of the run."""
    for _ in range(100):
        counts = _shared_counts(session)
        if not counts["kept"]:
            break
        time.sleep(0.05)
    return counts


def _shared_counts(session: hw.Session) -> Counter:
    found = session._executor.client.run(
        lambda dask_worker: {
            **dask_worker.headwater.lending.counts,
            **dask_worker.headwater.borrowing.counts,
            "leases": dask_worker.headwater.lending.leases,
            "kept": getattr(dask_worker.headwater.device_cache, "bytes", 0),
            "never": sum(reason != "no device" for reason in dask_worker.headwater.borrowing.never.values()),
        }
    )
    return sum(map(Counter, found.values()), Counter())


def ask_for_little() -> None:
    """Let a worker ask others for however few rows."""
    from headwater.runtime.workers import device_borrowing

    device_borrowing.LEAST_BYTES = 1


def without_room(dask_worker) -> None:
    """Let a worker keep no blocks on its device."""
    if dask_worker.headwater.device_cache is not None:
        dask_worker.headwater.device_cache.budget = 0


def refuse_ipc() -> None:
    """Let CUDA refuse to map other processes' memory, as it does between containers."""
    import cupy

    def refuse(handle: bytes, flags: int = 1) -> int:
        raise cupy.cuda.runtime.CUDARuntimeError(217)

    cupy.cuda.runtime.ipcOpenMemHandle = refuse


def digests_of(session: hw.Session) -> tuple[dict[str, str], dict[str, int]]:
    """Run the pipeline; digests of its outputs, and bytes by where stages had their input from."""
    with session.run(exchanged()) as result:
        stages = result.report.stages
        names = ("to_device_bytes", "device_bytes", "peer_device_bytes", "rows_in")
        digests = {name: result.digest(name) for name in result.outputs}
        return digests, {name: sum(getattr(stage, name) for stage in stages) for name in names}


def test_blocks_go_from_device_to_device(two_devices):
    with hw.Session(workers=2, device="gpu", **SMALL, progress=False) as session:
        session._executor.client.run(ask_for_little)
        digests, read = digests_of(session)
        counts = shared_counts(session)
        assert min(read["device_bytes"], read["peer_device_bytes"]) > 40_000
        assert counts["lent"] > 0
        # attempts beside others count here, and not in the report; some were cancelled before they had copied
        assert counts["lent_bytes"] >= counts["borrowed_bytes"] >= read["peer_device_bytes"]
        assert not any(counts[name] for name in ("leases", "kept", "late", "failed", "never"))

        session._executor.client.run(refuse_ipc)
        again, refused = digests_of(session)
        counts = shared_counts(session)
        assert again == digests
        assert (refused["peer_device_bytes"], counts["leases"]) == (0, 0)
        assert 1 <= counts["never"] <= counts["failed"]
        assert refused["device_bytes"] > 40_000

        session._executor.client.run(without_room)
        again, alone = digests_of(session)
        assert again == digests
        assert (alone["device_bytes"], alone["peer_device_bytes"]) == (0, 0)
        assert read["to_device_bytes"] < refused["to_device_bytes"] < alone["to_device_bytes"]
        assert read["rows_in"] == refused["rows_in"] == alone["rows_in"]
    with hw.Session(workers=1, device="gpu", **SMALL, progress=False) as one:
        assert digests_of(one)[0] == digests


def test_a_worker_that_others_copy_from_is_killed(two_devices, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    victims: list[int] = []

    def watch(snapshot) -> None:
        """Kill one of the workers once rows go through the second stage."""
        if not victims and sum(stage.done > 0 for stage in snapshot.stages) > 1:
            pids = session._executor.client.run(os.getpid, workers=list(session._executor.devices()))
            victims.append(max(pids.values()))
            os.kill(victims[0], signal.SIGKILL)

    with hw.Session(workers=3, device="gpu", progress=watch, **SMALL) as session:
        session._executor.client.run(ask_for_little)
        digests, _ = digests_of(session)
        counts = shared_counts(session)
        assert (counts["leases"], counts["kept"]) == (0, 0)
    assert victims
    with hw.Session(workers=1, device="gpu", **SMALL, progress=False) as alone:
        assert digests_of(alone)[0] == digests
