"""DaskExecutor: a cluster that runs tasks, and the way back to it when its scheduler died."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from distributed import Client

from ..errors import ClusterError
from ..lineage.owner import this_process
from .dask_channel import DaskChannel
from .devices.device_info import DeviceInfo
from .membership import Membership
from .scheduler_events import WorkerJoined
from .workers.direct_tasks import SUPPORTED
from .workers.worker_plugin import HeadwaterWorkerPlugin

#: seconds that one look for a new scheduler takes at most
_LOOK_SECONDS = 1.0
#: seconds for a node to delete what it keeps
_DROP_SECONDS = 30.0
#: seconds between looks at who has come
_GREET_SECONDS = 0.05


class DaskExecutor:
    """Runs tasks on the workers of a Dask cluster.

    Args:
        client: connected to the cluster, not asynchronous.
        scratch: the nodes' scratch folder; None lets each worker find its own (see `HeadwaterWorkerPlugin`).
        quota_bytes: bound of each scratch folder.
        owned: what `close` closes too, in order: client, then cluster.
        kept_bytes: most bytes of blocks that each node keeps beyond their runs.
        direct: whether tasks may go straight to the workers: nobody but this executor uses the cluster.

    Attributes:
        client: the present one.
        membership: who lives, as the present client hears.
        generation: how many schedulers there were before.
        closed: whether it was let go.
        direct: whether tasks go straight to the workers.

    Raises:
        ClusterError: the workers can't be made to run Headwater.
    """

    def __init__(
        self,
        client: Client,
        scratch: str | None = None,
        quota_bytes: int | None = None,
        owned: Sequence[Any] = (),
        kept_bytes: int | None = None,
        direct: bool = False,
    ):
        self.direct = direct and SUPPORTED
        self.client = client
        self.address: str = client.scheduler.address
        self.generation = 0
        self.closed = False
        #: connections that wait for results; counted in the event loop
        self.listening = 0
        self._owned = tuple(owned)
        self._plugin = HeadwaterWorkerPlugin(scratch, quota_bytes, kept_bytes=kept_bytes)
        #: under which Dask's scheduler counts all tasks; else it begins, and holds, a new span whenever it was idle
        self.span = {"name": ("headwater",), "ids": (uuid.uuid4().hex,)}
        self._lock = threading.Lock()
        try:
            self.membership = Membership(client, self._plugin)
        except (OSError, TimeoutError) as error:
            raise ClusterError(f"the cluster at {self.address} doesn't answer: {error}") from error

    @property
    def owns_cluster(self) -> bool:
        """Whether the cluster was started for this executor, and ends with it."""
        return len(self._owned) > 1

    @property
    def cluster(self) -> Any:
        """The cluster that was started for this executor."""
        return self._owned[1]

    def workers(self) -> list[WorkerJoined]:
        """The workers that can take tasks."""
        return self.membership.workers()

    def devices(self) -> dict[str, DeviceInfo | None]:
        """The GPU of each worker, by address; None for those without one."""
        return {worker.address: self._device(worker.address)[0] for worker in self.workers()}

    def gpu_workers(self) -> int:
        """How many workers have a GPU."""
        return sum(worker.gpu for worker in self.workers())

    def await_gpu(self, seconds: float) -> None:
        """Wait until a worker has told that it has a GPU, or all have told what they have; CuPy takes long to import.

        Args:
            seconds: at most.
        """
        end = time.monotonic() + seconds
        while not self.gpu_workers() and self.membership.awaited() and time.monotonic() < end:
            time.sleep(_GREET_SECONDS)

    def describe_devices(self) -> str:
        """Write what GPU each worker has, or why it has none, a line for each."""
        lines = []
        for worker in self.workers():
            device, problem = self._device(worker.address)
            lines.append(f"  {worker.address}: {device or problem or 'no GPU'}")
        return "\n".join(lines) or "  there are no workers"

    def _device(self, address: str) -> tuple[DeviceInfo | None, str]:
        return self.membership.devices.get(address, (None, ""))

    def open(self, run: str, epoch: int = 0) -> DaskChannel:
        """Open a channel for a run; several may be open at once."""
        return DaskChannel(self, run, epoch)

    def drop_kept(self, keys: Sequence[str]) -> int:
        """Let go of kept blocks that this process has pinned; returns the bytes set free."""
        return self.client.sync(self._drop_kept, list(keys))

    async def _drop_kept(self, keys: list[str]) -> int:
        owner, freed = this_process().record(), 0
        for worker in self.workers():  # each of a node's may hold some in memory; the first deletes the files
            with suppress(Exception):  # it is gone, or will be soon
                call = self.client.rpc(worker.address).headwater_drop(keys=keys, owner=owner)
                freed += (await asyncio.wait_for(call, _DROP_SECONDS))["freed_bytes"]
        return freed

    def reconnect(self, generation: int) -> bool:
        """Look once for a scheduler at the old address, with new connections.

        Args:
            generation: that the caller knows to be lost.

        Returns:
            Whether there is a newer one now.
        """
        with self._lock:
            if self.generation > generation:
                return True
            if self.owns_cluster:
                raise ClusterError(
                    "the scheduler of this session's own cluster is gone. Start a new session."
                )
            old = self.client
            try:
                client = Client(
                    self.address, timeout=_LOOK_SECONDS, set_as_default=False, security=old.security
                )
            except (OSError, TimeoutError):
                return False
            try:
                membership = Membership(client, self._plugin)
            except Exception:  # it went away again
                threading.Thread(target=_close_quietly, args=(client,), daemon=True).start()
                return False
            lost, self.client, self.membership = self.membership, client, membership
            self._owned = tuple(client if resource is old else resource for resource in self._owned)
            self.generation += 1
        with suppress(Exception):
            lost.close()
        threading.Thread(target=_close_quietly, args=(old,), daemon=True).start()
        return True

    def close(self) -> None:
        """Stop following the cluster; close the client and cluster if they are owned."""
        self.closed = True
        with suppress(OSError, TimeoutError):
            self.membership.close()
        for resource in self._owned:
            resource.close()
        self._owned = ()


def _close_quietly(client: Client) -> None:
    with suppress(Exception):
        client.close(timeout=2)
