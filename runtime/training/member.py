"""Member: one worker's part in a gang. It carries shards, sums their statistics and keeps the newest state."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import xxhash
from threadpoolctl import threadpool_limits

from ...errors import NonDeterministicError
from ...ops.backend import array_namespace, stage_backend, to_host
from ...ops.device.crossing import Traffic, counted, staged
from ...ops.training.determinism import check_repeats
from ...ops.training.minibatch import Minibatch
from ...ops.training.program import DataInfo, Shard, State
from ...ops.training.sampling import Order, shard_shares
from ..collectives.endpoint import Endpoint
from ..collectives.errors import GroupBrokenError, ranks_text
from ..collectives.group import form
from ..fault_points import TRAIN_STEP, reach
from ..nodes.node_store import NodeStore
from ..workers.fetch import Fetcher
from .job import Fence, Orders, PrepareOrders, ShardSummary, TrainJob
from .mapped_shard import MappedShard
from .prefetch import PrefetchedShard, Prefetcher
from .shard_building import build_shards, summary_of
from .shard_file import ShardFile
from .shard_source import PreparedShard, ShardSource
from .sharded_state import ShardedState
from .streamed_shard import StreamedShard
from .transport import AnyGroup, choose_transport, for_group

#: first byte of the note of a step: the gang is to stop after it, as its constellation changes; or not
REGROUP, GO_ON = b"R", b"-"
#: seconds for all members of a generation to find each other
FORM_SECONDS = 10.0
#: seconds for them to open connections between their devices
CONNECT_SECONDS = 60.0
#: seconds after which an operation gives up; what is really wrong is noticed much sooner
STEP_SECONDS = 3600.0


#: members compare their states in every step whose number is a multiple of this
CHECKED_STEPS = 50


class Outcome(Enum):
    """How a generation ended."""

    FINISHED = "finished"
    #: at a step boundary, as was asked for
    REGROUP = "regroup"
    #: in the middle of a step: a member is gone
    BROKEN = "broken"


class Member:
    """What a process knows of one train stage, between generations and during them.

    Args:
        job: what is trained.
        endpoint: where the other members reach it.
        threads: how many shards it computes at once.

    Attributes:
        step: how many steps the state includes; -1 without a state.
        error: what ended its last generation, if that was its own doing.
        stepped: when the last step was completed, by the monotonic clock.
        transport: which way arrays go: "host", or "nccl" or "ipc" between devices.
        traffic: what has crossed between host and device.
    """

    def __init__(self, job: TrainJob, endpoint: Endpoint, threads: int = 1):
        self.job, self.endpoint, self.threads = job, endpoint, threads
        self.fence: Fence = (0, 0)
        self.state: State | None = None
        self.step = -1
        self.finished = False
        self.error: BaseException | None = None
        self._prepared: dict[tuple[str, int], tuple[ShardSource, PreparedShard]] = {}
        self._closed = threading.Event()
        program = job.kernel.program
        self._sharded = (
            ShardedState(program)
            if job.kernel.strategy.sharded_state and isinstance(program, Minibatch)
            else None
        )
        self.stepped = time.monotonic()
        self.on_step: Callable[[State], None] | None = None
        self.note: Callable[[], bytes] = lambda: GO_ON
        self._sums: list[np.ndarray] = []
        self._group: AnyGroup | None = None
        self.transport = "host"
        self.traffic = Traffic()
        self._running = threading.Lock()

    def prepare(self, orders: PrepareOrders, store: NodeStore, fetcher: Fetcher) -> list[ShardSummary]:
        """Bring shards onto the node, beside a generation that runs.

        Raises:
            FetchFailedError: blocks are lost.
            HeadwaterError: rows that can't be trained on.
        """
        self.job.kernel.objective.warm_up()
        summaries = []
        for part, source, prepared in build_shards(self.job, orders, store, fetcher, self._closed):
            self._prepared[part, prepared.plan.index] = source, prepared
            summaries.append(summary_of(part, prepared))
        return summaries

    def run(self, orders: Orders) -> Outcome:
        """Take part in a generation until it ends; a generation before must have ended, or ends now.

        Raises:
            Whatever a program raises; the others then see the group break.
        """
        self.abandon()
        with (
            self._running,
            stage_backend(self.job.device),
            counted(self.traffic),
            threadpool_limits(limits=1),
            ThreadPoolExecutor(self.threads) as pool,
            Prefetcher() as prefetcher,
        ):
            self.error = None
            try:
                self._group = form(
                    self.endpoint,
                    orders.rank,
                    orders.addresses,
                    orders.layout,
                    orders.generation,
                    orders.token,
                    FORM_SECONDS,
                    operation_timeout=STEP_SECONDS,
                )
                if self.job.device == "gpu":
                    self._group = choose_transport(self._group, CONNECT_SECONDS)
                self.transport = self._group.transport
                return self._steps(orders, pool, prefetcher)
            except GroupBrokenError:
                return Outcome.BROKEN
            except BaseException as error:
                self.error = error
                raise
            finally:
                group, self._group = self._group, None
                if group is not None:
                    group.close()

    @property
    def is_running(self) -> bool:
        """Whether a generation goes on."""
        return self._running.locked()

    def abandon(self) -> None:
        """End the generation that runs, from any thread."""
        group = self._group
        if group is not None:
            group.abandon()

    def close(self) -> None:
        """Let go of everything."""
        self._closed.set()
        self.abandon()
        with self._running:
            self._prepared, self.state, self.step = {}, None, -1
            self.endpoint.close()

    def _steps(self, orders: Orders, pool: ThreadPoolExecutor, prefetcher: Prefetcher) -> Outcome:
        program = self.job.kernel.program
        self._agree_on_state(orders)
        assert self._group is not None
        assert self.state is not None
        if self._sharded is not None and not self._sharded.share(self.state, self.step, self._group):
            self.state, self.step = None, -1  # lineage has to make it again
            return Outcome.REGROUP
        own = [
            PrefetchedShard(self._shard(index, orders.info), prefetcher, orders.info.steps_per_epoch)
            for index in range(*orders.layout[orders.rank])
        ]
        self._check_determinism(own)
        self.stepped = time.monotonic()
        while not (finished := program.finished(self.state)):
            parts, names, shapes = self._statistics(own, pool)
            reach(f"{TRAIN_STEP}:{self.step}")
            if self._sharded is not None:
                note = self.note()
                state, notes = self._sharded.step(self.state, self.step, self._group, parts, names, note)
                self.state, self.step = state, self.step + 1
            else:
                notes = self._whole_step(parts, names, shapes)
            self.stepped = time.monotonic()
            if self.on_step is not None:
                self.on_step(self.state)
            if any(note[:1] == REGROUP for note in notes):
                finished = program.finished(self.state)
                break
        if finished and self._sharded is not None:
            self._sharded.gather(self.state, self._group)
        self.finished = finished
        return Outcome.FINISHED if finished else Outcome.REGROUP

    def _whole_step(
        self, parts: Mapping[int, list[np.ndarray]], names: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> list[bytes]:
        """Sum the statistics, and update the whole state."""
        assert self._group is not None
        assert self.state is not None
        program = self.job.kernel.program
        reused = isinstance(program, Minibatch) and not self._group.on_device
        out = self._room(next(iter(parts.values()))) if reused else None
        note = self.note() + (state_digest(self.state) if self.step % CHECKED_STEPS == 0 else b"")
        sums, notes = self._group.all_reduce(parts, note, out=out)
        self._check_states(notes)
        total = {name: array.reshape(shape) for name, array, shape in zip(names, _on_device(sums), shapes)}
        state, self.state, step, self.step = self.state, None, self.step, -1  # an update may use it up
        self.state, self.step = program.update(state, total), step + 1
        return notes

    def _check_states(self, notes: Sequence[bytes]) -> None:
        """Raise if members don't have the same state, though they went through the same steps."""
        digests = [note[1:] for note in notes]
        if len(set(digests)) > 1:
            odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
            raise NonDeterministicError(
                f"{self.job.kernel.label}: before step {self.step + 1}, the states of {ranks_text(odd)} of the gang "
                "differ from that of rank 0. Their libraries or processors compute differently; use workers that are "
                "alike, or look for what an objective's functions keep between calls."
            )

    def _room(self, like: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Arrays for the sums of a program that keeps none of them beyond its update: the same in every step."""
        shape = [(array.size, array.dtype) for array in like]
        if [(array.size, array.dtype) for array in self._sums] != shape:
            self._sums = [np.empty(size, dtype) for size, dtype in shape]
        return self._sums

    def _agree_on_state(self, orders: Orders) -> None:
        """Take the newest state of all, or begin.

        Members ask each other: what the coordinator heard may have been the step before.
        """
        assert self._group is not None
        steps = [int(note) for note in self._group.barrier(str(self.step).encode())]
        newest = max(steps)
        if newest < 0:
            self.state, self.step = self.job.kernel.program.start(orders.info), 0
            return
        if min(steps) == newest:
            return
        root, given = steps.index(newest), []
        if orders.rank == root:
            given = [np.frombuffer(pickle.dumps(host_state(self.state), 5), np.uint8)]
        (packed,) = self._group.broadcast(given, root)
        if orders.rank != root:
            self.state, self.step = device_state(pickle.loads(packed.tobytes())), newest

    def _shard(self, index: int, info: DataInfo) -> Shard:
        validation = self._view("validation", index, info) if "validation" in self.job.bounds else None
        return self._view("train", index, info, validation)

    def _view(self, part: str, index: int, info: DataInfo, validation: Shard | None = None) -> Shard:
        source, prepared = self._prepared[part, index]
        plan, kernel, cached = prepared.plan, self.job.kernel, prepared.cached
        shares = shard_shares(self.job.shards, kernel.settings.batch_size)
        order = Order(info.seed, index, plan.rows, int(shares[index]))
        if cached is None:
            cached = ShardFile.without_rows(index, plan.first_row, dict(info.columns), prepared.widths)
        if prepared.is_whole:
            return MappedShard(cached, order, validation)
        rest = plan.part(cached.rows, plan.rows)
        return StreamedShard(
            cached, plan.rows, partial(source.tables, rest), kernel.features, order, validation
        )

    def _check_determinism(self, own: Sequence[Shard]) -> None:
        first = next((shard for shard in own if shard.rows), None)
        if self.step == 0 and first is not None and self.state is not None:
            kernel = self.job.kernel
            check_repeats(kernel.program, self.state, first, kernel.objective)

    def _statistics(
        self, own: Sequence[Shard], pool: ThreadPoolExecutor
    ) -> tuple[dict[int, list[np.ndarray]], list[str], list[tuple[int, ...]]]:
        program, state = self.job.kernel.program, self.state
        assert state is not None

        def of(shard: Shard) -> Mapping[str, Any]:
            return program.statistics(state, shard)

        if self.threads > 1 and len(own) > 1:
            # the array namespace may have been chosen for this thread alone
            coming = [pool.submit(copy_context().run, of, shard) for shard in own]
            found = [future.result() for future in coming]
        else:
            found = [of(shard) for shard in own]
        names = list(found[0])
        shapes = [np.shape(found[0][name]) for name in names]
        assert self._group is not None
        parts = {
            shard.index: [for_group(self._group, statistics[name]) for name in names]
            for shard, statistics in zip(own, found)
        }
        return parts, names, shapes


def host_state(value: Any) -> Any:
    """Copy a state's arrays to the host, so that it can travel."""
    if isinstance(value, dict):
        return {name: host_state(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(host_state(item) for item in value)
    return to_host(value) if hasattr(value, "__cuda_array_interface__") else value


def state_digest(state: Any) -> bytes:
    """Hash what a state holds; 8 bytes, the same wherever the arrays lie."""
    hash = xxhash.xxh3_64()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for name in sorted(value, key=str):
                hash.update(str(name).encode())
                add(value[name])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        elif hasattr(value, "dtype"):
            hash.update(np.ascontiguousarray(to_host(value)).tobytes())
        else:
            hash.update(repr(value).encode())

    add({name: value for name, value in state.items() if name != "history"})
    return hash.digest()


def device_state(value: Any) -> Any:
    """Undo `host_state`, on a worker with a device."""
    xp = array_namespace()
    if xp is np:
        return value
    if isinstance(value, dict):
        return {name: device_state(item) for name, item in value.items()}
    return staged(xp, value) if isinstance(value, np.ndarray) else value


def _on_device(arrays: Sequence[np.ndarray]) -> Sequence[Any]:
    xp = array_namespace()
    return arrays if xp is np else [staged(xp, array) for array in arrays]
