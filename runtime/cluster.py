"""Cluster: start a local Dask cluster made for Headwater, or join one that runs."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask
from dask.utils import parse_bytes
from distributed import Client, LocalCluster
from distributed.versions import VersionMismatchWarning

from ..errors import ClusterError, ParameterError
from ..ops.device.discovery import has_cupy, has_driver, visible_devices
from .dask_executor import DaskExecutor
from .devices.assignment import NO_GPU_ADVICE, USUAL_WORKERS, Binding, bind
from .executor import Executor
from .fork_server import warm_up
from .nodes.private_scratch import adopt_private_scratch, make_private_scratch
from .quiet_logs import be_as_before, be_quiet
from .spawn import keep_main_out_of_workers
from .versions import check_versions
from .workers.interrupts import LeaveInterrupts
from .workers.memory_watch import MemoryWatch, read_peak

_PROTOCOLS = ("tcp", "tls", "ucx", "ucxx", "ws", "wss", "inproc")

#: how clusters we start run: tasks are pinned, so nothing may move them; what fails, the driver repeats;
#: mapped files count as a process's memory, so Dask's own limits would kill for page cache; a profiler that stops
#: each thread a hundred times a second, and clocks that tick fifty times, take a tenth of a core from the tasks
CONFIG: dict[str, Any] = {
    "distributed.scheduler.worker-saturation": "inf",
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.diagnostics.nvml": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
}


class HeadwaterCluster(LocalCluster):
    """A local cluster whose scratch folder goes with it.

    Args:
        bindings: what the worker processes get, by number; those that come later get the same in turn. Empty leaves
            their environment as it is.
        options: of Dask's cluster.
    """

    scratch: Path | None = None
    scratch_to_remove: Path | None = None
    worker_spec: dict[Any, dict[str, Any]]
    _quiet = False

    def __init__(self, *, bindings: Sequence[Binding] = (), **options: Any):
        self._bindings = tuple(bindings)
        be_quiet()
        self._quiet = True
        try:
            super().__init__(**options)
        except BaseException:
            self._end_quiet()
            raise

    async def _start(self) -> None:
        self.worker_spec = {name: self._bound(name, spec) for name, spec in self.worker_spec.items()}
        await super()._start()

    def new_worker_spec(self) -> dict[Any, Any]:
        """As Dask's, bound to a device."""
        return {name: self._bound(name, spec) for name, spec in super().new_worker_spec().items()}

    def _bound(self, number: int, spec: dict[str, Any]) -> dict[str, Any]:
        if not self._bindings:
            return spec
        binding, options = self._bindings[number % len(self._bindings)], spec["options"]
        env = {**options.get("env", {}), **binding.environment}
        resources = {**(options.get("resources") or {}), "GPU": 0 if binding.device is None else 1}
        return {**spec, "options": {**options, "env": env, "resources": resources}}

    def close(self, timeout: float | None = None) -> Any:
        """Stop the processes and remove the scratch folder if it was made for this cluster."""
        try:
            return super().close(timeout)
        finally:
            self._end_quiet()
            if self.scratch_to_remove is not None:
                shutil.rmtree(self.scratch_to_remove, ignore_errors=True)

    def _end_quiet(self) -> None:
        if self._quiet:
            self._quiet = False
            be_as_before()


def start_local(
    workers: int | None = 4,
    threads_per_worker: int = 1,
    memory_limit: str | int | None = None,
    scratch: str | Path | None = None,
    processes: bool = True,
    dashboard: bool = False,
    device: str = "cpu",
) -> tuple[HeadwaterCluster, Client]:
    """Start a Dask cluster on this machine.

    Args:
        workers: how many worker processes; None is one for each GPU that is used, and four in all if there are fewer.
        threads_per_worker: how many tasks each runs at once.
        memory_limit: of each worker, in bytes or as "2 GB"; a plan's measure, which Dask doesn't enforce.
        scratch: the node's scratch folder; None makes one that closing the cluster removes.
        processes: False runs the workers as threads of this process, which starts faster.
        dashboard: whether to serve Dask's dashboard.
        device: "auto" binds each process to one of the machine's GPUs, if it has any; "gpu" insists on one; "cpu"
            uses none.

    Returns:
        Cluster and client; close the client first.

    Raises:
        ParameterError: a number is out of range.
        ClusterError: the processes don't start, or there is no GPU, and one is asked for.
    """
    bindings = local_bindings(workers, device) if processes else []
    workers = len(bindings) or (USUAL_WORKERS if workers is None else workers)
    if workers < 1 or threads_per_worker < 1:
        raise ParameterError(
            f"workers={workers}, threads_per_worker={threads_per_worker}: give at least 1 of each."
        )
    limit = _memory(memory_limit)
    own = make_private_scratch() if scratch is None else adopt_private_scratch(Path(scratch))
    root = own or Path(scratch or "")
    cluster: HeadwaterCluster | None = None
    keep_main_out_of_workers()
    try:
        forked = (
            {"distributed.worker.multiprocessing-method": "forkserver"} if processes and warm_up() else {}
        )
        with dask.config.set({**CONFIG, **forked}):
            cluster = HeadwaterCluster(
                bindings=bindings,
                n_workers=workers,
                threads_per_worker=threads_per_worker,
                memory_limit=limit,
                processes=processes,
                dashboard_address="127.0.0.1:0",  # Dask serves HTTP in any case, else on a fixed port
                scheduler_kwargs={"dashboard": dashboard},
                local_directory=str(root / "dask"),
                silence_logs=logging.CRITICAL,
                # a fork has the server's environment, which may be older than this process's
                **({"env": _environment(root, device)} if processes else {}),
            )
            cluster.scratch, cluster.scratch_to_remove = root, own
            client = Client(cluster, set_as_default=False)
        if processes:
            client.register_plugin(LeaveInterrupts())
        client.wait_for_workers(workers, timeout=60)
        return cluster, client
    except BaseException as error:
        if cluster is not None:
            cluster.close()
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
        if isinstance(error, (OSError, TimeoutError, RuntimeError)):
            raise ClusterError(f"{workers} local worker processes could not be started: {error}") from error
        raise


def local_bindings(workers: int | None, device: str) -> list[Binding]:
    """Decide which worker process of a local cluster gets which of this machine's GPUs.

    Args:
        workers: as `start_local`.
        device: likewise.

    Returns:
        What each process gets; empty if no GPU is to be used.

    Raises:
        ClusterError: one is asked for, and there is none that can be used.
    """
    if device == "cpu":
        return []
    devices = visible_devices()
    if devices and has_cupy():
        return bind(workers, devices)
    if device == "gpu":
        raise ClusterError(f"Session(device='gpu'): {_why_no_device(bool(devices))} {NO_GPU_ADVICE}")
    return []


def _why_no_device(visible: bool) -> str:
    if visible:
        return "this machine has a GPU, but CuPy isn't installed here. Install headwater[gpu]."
    if os.environ.get("HEADWATER_BACKEND") == "numpy":
        return "HEADWATER_BACKEND=numpy says that no GPU is to be used."
    if has_driver():
        return "NVIDIA's driver shows no GPU here; CUDA_VISIBLE_DEVICES may hide it."
    return "this machine has no GPU, or NVIDIA's driver isn't loaded."


def _environment(root: Path, device: str) -> dict[str, str]:
    hidden = {"HEADWATER_BACKEND": "numpy"} if device == "cpu" else {}
    return {**os.environ, "HEADWATER_SCRATCH": str(root), **hidden}


def join(address: str, timeout: float = 10.0) -> Client:
    """Connect to a running Dask cluster and check that its versions fit.

    Args:
        address: of the scheduler, as "tcp://10.0.0.1:8786".
        timeout: seconds to wait for the scheduler, and for a first worker.

    Returns:
        The client.

    Raises:
        ParameterError: the text isn't an address.
        ClusterError: no scheduler answers, or it has no workers.
        VersionMismatchError: versions differ.
    """
    address = _address(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # `check_versions` tells what matters
            client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address} within {timeout:g} seconds. "
            "Is it running (`dask scheduler`), and is the port reachable from here?"
        ) from error
    try:
        _require_worker(client, address, timeout)
        check_versions(client)
    except BaseException:
        client.close()
        raise
    return client


def open_executor(
    address: str | None,
    workers: int | None = 4,
    threads_per_worker: int = 1,
    memory_limit: str | int | None = None,
    scratch: str | Path | None = None,
    quota_bytes: int | None = None,
    kept_bytes: int | None = None,
    device: str = "cpu",
) -> DaskExecutor:
    """Start a local cluster, or join one, and make it ready for runs.

    Args:
        address: of a running scheduler; None starts a local cluster, for which the rest is meant.
        workers, threads_per_worker, memory_limit, scratch, device: as `start_local`.
        quota_bytes: bound of each node's scratch folder.
        kept_bytes: bound of what each node keeps beyond its runs.

    Returns:
        An executor whose ``close`` ends what was started here.
    """
    if address is not None:
        client = join(address)
        return _ready(client, quota_bytes, (client,), kept_bytes)
    cluster, client = start_local(workers, threads_per_worker, memory_limit, scratch, device=device)
    executor = _ready(client, quota_bytes, (client, cluster), kept_bytes, direct=True)
    client.register_plugin(MemoryWatch())
    return executor


def scratch_of(executor: Executor) -> str | None:
    """Return the scratch folder of a local cluster; None if the executor isn't one."""
    if not isinstance(executor, DaskExecutor) or not executor.owns_cluster:
        return None
    return str(executor.cluster.scratch)


def peak_memory(executor: Executor) -> dict[str, int]:
    """Return the most anonymous memory, in bytes, that each worker process of a local cluster has held.

    Raises:
        ClusterError: the executor isn't a local cluster; others are not watched.
    """
    if not isinstance(executor, DaskExecutor) or not executor.owns_cluster:
        raise ClusterError("peak memory is known for local clusters only, as Session(workers=4) starts them.")
    return executor.client.run(read_peak)


def _ready(
    client: Client, quota: int | None, owned: tuple[Any, ...], kept: int | None, direct: bool = False
) -> DaskExecutor:
    try:
        return DaskExecutor(client, None, quota, owned, kept, direct)
    except BaseException:
        for resource in owned:
            resource.close()
        raise


def _require_worker(client: Client, address: str, timeout: float) -> None:
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError as error:
        raise ClusterError(
            f"the Dask scheduler at {address} has no workers. Start some with `dask worker {address}`."
        ) from error


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in _PROTOCOLS and parts.netloc and (parts.port or parts.scheme == "inproc")
    except ValueError:
        valid = False
    if not valid:
        hint = f" Did you mean 'tcp://{text}'?" if "://" not in text and ":" in text else ""
        raise ParameterError(
            f"{text!r} isn't the address of a Dask scheduler.{hint} Write it as 'tcp://HOST:PORT', as 'tcp://10.0.0.1:8786'."
        )
    return text


def _memory(limit: str | int | None) -> int | str:
    if limit is None:
        return "auto"
    try:
        size = parse_bytes(limit)
    except ValueError as error:
        raise ParameterError(f"memory_limit={limit!r}: write bytes, or a size as '2 GB'.") from error
    if size < 32 << 20:
        raise ParameterError(f"memory_limit={limit!r} is {size:,} bytes; a worker needs at least 32 MiB.")
    return size
