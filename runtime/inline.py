"""InlineExecutor: runs tasks in this process, one at a time; for tests, debugging and small data."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cloudpickle
import pyarrow as pa

from ..errors import ParameterError
from ..lineage.owner import this_process
from ..ops.device.cache import DeviceCache
from ..planner.plan import Storage
from .collectives.endpoint import Endpoint
from .devices.device_info import DeviceInfo
from .devices.worker_device import cache_of, describe_device
from .executor import failed
from .nodes.kept import Kept
from .nodes.node_store import NodeStore
from .nodes.private_scratch import make_private_scratch
from .reuse import NodeKeeps
from .scheduler_events import BlocksFound, Event, Keep, Relocate, TaskFinished, WorkerJoined, WorkerLeft
from .task import Block, CancelledTask, Segment, StageProgram, Task
from .training.network import Alone
from .training.service import TrainingService
from .training.stage import TrainingHost
from .workers.broadcast import BroadcastCache
from .workers.fetch import Fetcher
from .workers.run_task import run_task
from .workers.worker_plugin import pack_program


class InlineExecutor:
    """Logical workers that share this process.

    Args:
        workers: how many; they take turns.
        nodes: over how many nodes, each with its own scratch folder, the workers are spread.
        scratch: folder for the nodes' folders; None makes one that `close` removes.
        quota_bytes: bound of each scratch folder.
        kept_bytes: most bytes of blocks that each node keeps beyond their runs; None as in `Kept`.
        device: whether they have this process's GPU, if it has one.

    Example:
        >>> executor = InlineExecutor(workers=2)
        >>> [worker.address for worker in executor.workers()]
        ['inline-0', 'inline-1']
        >>> executor.close()
    """

    def __init__(
        self,
        workers: int = 1,
        nodes: int = 1,
        scratch: str | Path | None = None,
        quota_bytes: int | None = None,
        kept_bytes: int | None = None,
        device: bool = True,
    ):
        if not 1 <= nodes <= workers:
            raise ParameterError(
                f"{workers} workers on {nodes} nodes: give at least one worker to each node."
            )
        self._own = make_private_scratch() if scratch is None else None
        root = self._own or Path(scratch or "")
        self._stores = [NodeStore(root / f"node-{number}", quota_bytes) for number in range(nodes)]
        self._stores_of = {f"inline-{n}": self._stores[n % nodes] for n in range(workers)}
        self._channels: list[InlineChannel] = []
        self._kept: dict[str, Kept] = {}
        self._kept_bytes = kept_bytes
        self._use_device = device
        self._found: tuple[DeviceInfo | None, str] | None = None
        self._cache: DeviceCache | None = None

    def workers(self) -> list[WorkerJoined]:
        """The logical workers that live."""
        gpu = self._device()[0] is not None
        return [
            WorkerJoined(address, store.node, gpu=gpu) for address, store in sorted(self._stores_of.items())
        ]

    def devices(self) -> dict[str, DeviceInfo | None]:
        """The GPU of each worker: this process's."""
        return dict.fromkeys(sorted(self._stores_of), self._device()[0])

    def gpu_workers(self) -> int:
        """How many workers have a GPU: all or none."""
        return sum(worker.gpu for worker in self.workers())

    def await_gpu(self, seconds: float) -> None:
        """There is nothing to wait for."""

    def describe_devices(self) -> str:
        """Write what GPU this process has, or why it has none."""
        device, problem = self._device()
        return f"  this process: {device or problem or 'no GPU'}"

    def _device(self) -> tuple[DeviceInfo | None, str]:
        if self._found is None:
            self._found = describe_device() if self._use_device else (None, "")
            self._cache = cache_of(self._found[0])
        return self._found

    @property
    def device_cache(self) -> DeviceCache | None:
        """Blocks on this process's GPU; None without one."""
        self._device()
        return self._cache

    def open(self, run: str, epoch: int = 0) -> InlineChannel:
        """Open a channel for a run."""
        channel = InlineChannel(self, run)
        self._channels.append(channel)
        return channel

    def store(self, address: str) -> NodeStore | None:
        """The scratch folder of a worker; None if the worker is gone."""
        return self._stores_of.get(address)

    def lose(self, address: str) -> None:
        """Let a worker die; its node's folder goes with the node's last worker."""
        store = self._stores_of.pop(address)
        if store not in self._stores_of.values():
            shutil.rmtree(store.root)
            self._stores.remove(store)
        for channel in self._channels:
            channel.told(WorkerLeft(address))

    def close(self) -> None:
        """Remove the scratch folder if this executor made it."""
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    @property
    def stores(self) -> list[NodeStore]:
        """The scratch folders of all living nodes."""
        return self._stores

    def kept(self, store: NodeStore) -> Kept:
        """What a node keeps between runs."""
        if store.node not in self._kept:
            self._kept[store.node] = Kept(store, self._kept_bytes)
        return self._kept[store.node]

    def drop_kept(self, keys: Sequence[str]) -> int:
        """Let go of kept blocks; returns the bytes set free."""
        return sum(self.kept(store).drop(keys, this_process()) for store in self._stores)

    def forget(self, channel: InlineChannel) -> None:
        """A channel was closed."""
        self._channels.remove(channel)


class InlineChannel:
    """One run's tasks, waiting for `wait` to run them."""

    def __init__(self, executor: InlineExecutor, run: str):
        self._executor = executor
        self._run = run
        self._programs: dict[int, StageProgram] = {}
        self._waiting: deque[tuple[Task, str]] = deque()
        self._events: list[Event] = list(executor.workers())
        self._broadcasts = BroadcastCache()

    def told(self, event: Event) -> None:
        """Pass an event on with the next `wait`."""
        self._events.append(event)

    def prepare(self, program: StageProgram) -> None:
        self._programs[program.stage] = cloudpickle.loads(pack_program(program))

    def launch(self, task: Task, worker: str) -> None:
        self._waiting.append((task, worker))

    def cancel(self, name: str, worker: str) -> None:
        for task, where in [entry for entry in self._waiting if entry[0].name == name]:
            self._waiting.remove((task, where))
            self._events.append(failed(task, where, CancelledTask(f"task {name} was cancelled")))

    def relocate(self, instruction: Relocate) -> None:
        raise NotImplementedError("tasks run one after the other, so none waits")

    def expect(self, tasks: int, seconds: float) -> None:
        pass

    def survey(self, node: str) -> None:
        self._events += [found for found in self.inventory() if found.node == node]

    def inventory(self) -> list[BlocksFound]:
        return [BlocksFound(store.node, tuple(store.inventory(self._run))) for store in self._executor.stores]

    def fence(self) -> None:
        pass

    def keep(self, instruction: Keep) -> None:
        for store in self._executor.stores:
            paths = [block.path for block in instruction.blocks if block.node == store.node]
            owner = this_process() if instruction.storage is not None else None
            self._executor.kept(store).keep(paths, pinned=owner is not None, owner=owner)

    def kept(
        self, stages: Mapping[str, Sequence[int]], pinned: Mapping[str, Storage] | None = None
    ) -> list[NodeKeeps]:
        found: list[NodeKeeps] = []
        for store in self._executor.stores:
            kept = self._executor.kept(store)
            found.append((store.node, kept.use(self._run, stages, pinned=pinned or ())))
        return found

    def drop(self, keys: Sequence[str]) -> None:
        for store in self._executor.stores:
            self._executor.kept(store).drop(keys, this_process(), self._run)

    def release(self, blocks: Sequence[Block]) -> None:
        for store in self._executor.stores:
            store.delete_blocks([block.path for block in blocks if block.node == store.node])

    def wait(self, timeout: float) -> list[Event]:
        events, self._events = self._events, []
        if not events and self._waiting:
            task, worker = self._waiting.popleft()
            store = self._executor.store(worker)
            if store is not None:
                events.append(self._execute(task, worker, store))
        return events

    def read(self, segments: Sequence[Segment], schema: pa.Schema) -> Iterator[pa.Table]:
        with self._fetcher(None).open(segments, {}) as inputs:
            yield from inputs.tables(segments, schema)

    def stop(self, timeout: float = 5.0) -> None:
        self._waiting.clear()

    def close(self) -> None:
        self.stop()
        for store in self._executor.stores:
            store.remove_run(self._run)
        if self._executor.device_cache is not None:
            self._executor.device_cache.forget(self._run)
        self._executor.forget(self)

    def abandon(self) -> None:
        self.stop()
        self._executor.forget(self)

    def _execute(self, task: Task, worker: str, store: NodeStore) -> Event:
        program = self._programs[task.stage]
        fetcher = self._fetcher(store)
        service = TrainingService(store, fetcher, lambda: Endpoint(store.node))
        training = TrainingHost(service, lambda known: Alone(service, worker))
        try:
            result = run_task(
                task,
                program,
                store,
                fetcher,
                worker,
                broadcasts=self._broadcasts,
                training=training,
                device_cache=self._executor.device_cache,
            )
            return TaskFinished(result)
        except Exception as error:
            return failed(task, worker, error)
        finally:
            service.forget(task.run)

    def _fetcher(self, store: NodeStore | None) -> Fetcher:
        roots = {other.node: other.root for other in self._executor.stores}
        return Fetcher(roots, space=store.space if store is not None else None)
