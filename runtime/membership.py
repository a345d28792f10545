"""Membership: which Dask workers live, on which nodes, and who wants to know."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from distributed import Client

from .demand import DemandPlugin
from .devices.device_info import DeviceInfo
from .health_monitor import HealthMonitor
from .scheduler_events import Cause, WorkerDraining, WorkerJoined, WorkerLeft
from .short_batches import ShortBatches
from .workers.handover import RUNS_TOPIC, WORKERS_TOPIC
from .workers.worker_plugin import HeadwaterWorkerPlugin

#: seconds for a worker to answer who it is, once; and how often it is asked while its plugin starts
_ANSWER_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 0.05
_ATTEMPTS = 200
#: seconds that a worker which Dask has removed may take to hand over its blocks
_FAREWELL_SECONDS = 20.0

Listener = Callable[[WorkerJoined | WorkerLeft | WorkerDraining], None]
Hearer = Callable[[dict[str, Any]], None]


class Membership:
    """The workers of a cluster, kept up to date by Dask's events.

    Args:
        client: of the cluster; its workers get the plugin, those to come as well.
        plugin: what makes them able to run tasks.
    """

    def __init__(self, client: Client, plugin: HeadwaterWorkerPlugin):
        self._client = client
        self._lock = threading.Lock()
        self._joined: dict[str, WorkerJoined] = {}
        #: path of the scratch folder of each node, there, as its workers told
        self.scratch: dict[str, str] = {}
        #: the GPU of each worker; or None, and in words why it has none, if that may surprise
        self.devices: dict[str, tuple[DeviceInfo | None, str]] = {}
        #: addresses that Dask knows, whether they have answered or not
        self._known: set[str] = set()
        #: those that said that they will leave
        self._draining: set[str] = set()
        self._listeners: list[Listener] = []
        #: who wants to know what workers say of a run, by run
        self._hearers: dict[str, Hearer] = {}
        self._greetings: set[asyncio.Task[None]] = set()
        self._monitor = HealthMonitor(client, self.left)
        client.sync(self._register, plugin)
        with suppress(Exception):  # a scheduler without Headwater does without
            client.register_plugin(DemandPlugin())
            client.register_plugin(ShortBatches())
        client.subscribe_topic("all", self._on_event)
        client.subscribe_topic(WORKERS_TOPIC, self._on_farewell)
        client.subscribe_topic(RUNS_TOPIC, self._on_message)
        client.sync(self._greet_all)

    def workers(self) -> list[WorkerJoined]:
        """The workers that can take tasks, by address."""
        with self._lock:
            return [self._joined[address] for address in sorted(self._joined)]

    def awaited(self) -> int:
        """How many workers Dask knows that haven't told yet who they are."""
        with self._lock:
            return len(self._known - set(self._joined))

    def nodes(self) -> dict[str, tuple[str, ...]]:
        """Addresses of the living workers of each node."""
        found: dict[str, list[str]] = {}
        for worker in self.workers():
            found.setdefault(worker.node, []).append(worker.address)
        return {node: tuple(addresses) for node, addresses in found.items()}

    def listen(self, listener: Listener) -> None:
        """Tell a listener of the workers there are, and of each change from now on, from any thread."""
        with self._lock:
            self._listeners.append(listener)
            for address in sorted(self._joined):
                listener(self._joined[address])

    def unlisten(self, listener: Listener) -> None:
        """Tell a listener no more."""
        with self._lock:
            self._listeners.remove(listener)

    def hear(self, run: str, hearer: Hearer) -> None:
        """Pass on what workers say of a run, and of kept blocks, in the client's event loop."""
        with self._lock:
            self._hearers[run] = hearer

    def unhear(self, run: str) -> None:
        """Pass nothing on of a run any more."""
        with self._lock:
            self._hearers.pop(run, None)

    def left(self, address: str, cause: Cause = Cause.DIED, silent: float = 0.0) -> None:
        """A worker is gone.

        Args:
            address: of the worker.
            cause: why.
            silent: seconds between its last sign of life and now.
        """
        if cause is Cause.DIED and self._monitor.fencing(address):
            return  # it was given up, and is being killed for that: the monitor tells soon
        self._monitor.forget(address)
        with self._lock:
            self._known.discard(address)
            self._draining.discard(address)
            self.devices.pop(address, None)
            if self._joined.pop(address, None) is not None:
                for listener in self._listeners:
                    listener(WorkerLeft(address, cause, silent))

    def close(self) -> None:
        """Stop following the cluster; the plugin stays, as other sessions may use it."""
        self._monitor.close()
        with self._lock:
            self._listeners.clear()
            self._hearers.clear()
        if self._client.status == "running":
            for topic in ("all", WORKERS_TOPIC, RUNS_TOPIC):
                self._client.unsubscribe_topic(topic)

    def _on_event(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if not isinstance(message, dict):
            return
        if message.get("action") == "add-worker":
            task = asyncio.ensure_future(self._greet(message["worker"]))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)
        elif message.get("action") == "remove-worker":
            if (
                message["worker"] in self._draining
            ):  # it may still be handing over its blocks, and tells when it has
                loop = asyncio.get_running_loop()
                loop.call_later(_FAREWELL_SECONDS, self.left, message["worker"], Cause.LEFT)
            else:
                self.left(message["worker"])

    def _on_message(self, event: tuple[float, Any]) -> None:
        """A worker says something of a run."""
        message = event[1]
        if isinstance(message, dict) and (hearer := self._hearers.get(message.get("run", ""))) is not None:
            hearer(message)

    def _on_farewell(self, event: tuple[float, Any]) -> None:
        """A worker says that it will leave, or that it has handed over what it had."""
        message = event[1]
        if isinstance(message, dict) and message.get("kind") == "kept moved":
            for hearer in list(self._hearers.values()):
                hearer(message)
        if not isinstance(message, dict) or "worker" not in message:
            return
        if message.get("kind") == "left":
            self.left(message["worker"], Cause.LEFT)
        elif message.get("kind") == "draining":
            with self._lock:
                self._draining.add(message["worker"])
                for listener in self._listeners:
                    listener(WorkerDraining(message["worker"]))

    async def _register(self, plugin: HeadwaterWorkerPlugin) -> None:
        """Give the plugin to all workers; one that hangs is not waited for."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._client.register_plugin(plugin), _ANSWER_SECONDS)

    async def _greet_all(self) -> None:
        """Ask all workers who they are, and go on with those that tell; the others may do so later."""
        info = await self._client.scheduler.identity(n_workers=-1)
        greetings = [asyncio.ensure_future(self._greet(address)) for address in info["workers"]]
        for greeting in greetings:
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)
        if greetings:
            await asyncio.wait(greetings, timeout=_ANSWER_SECONDS)

    async def _greet(self, address: str) -> None:
        """Ask a worker who it is, until its plugin is up or it is gone."""
        with self._lock:
            if address in self._known:
                return
            self._known.add(address)
        for _ in range(_ATTEMPTS):
            if address not in self._known:
                return
            try:
                info = await asyncio.wait_for(self._client.rpc(address).headwater_info(), _ANSWER_SECONDS)
                self.scratch[info["node"]] = info["scratch"]
                device = info.get("device")
                found = None if device is None else DeviceInfo(**device)
                self.devices[address] = found, info.get("device_problem", "")
                host = info.get("host", "")
                self._join(WorkerJoined(address, info["node"], info["threads"], host, found is not None))
                if address in self._joined:
                    self._monitor.watch(address, info)
                return
            except Exception:  # unknown operation while the plugin starts, or the worker is gone
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
        with self._lock:
            self._known.discard(address)

    def _join(self, worker: WorkerJoined) -> None:
        with self._lock:
            if worker.address in self._known and worker.address not in self._joined:
                self._joined[worker.address] = worker
                for listener in self._listeners:
                    listener(worker)
