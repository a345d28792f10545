"""TrainingService: what a worker process answers to coordinators of gangs. One a worker; RPC handlers."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import cloudpickle

from ...ops.pickling import dumps
from ..nodes.node_store import NodeStore
from ..task import FetchFailedError
from ..workers.fetch import Fetcher
from .job import Fence, Orders, TrainJob
from .member import Member
from .numerics import numerics
from .shard_building import held_shards

#: finished members whose state is kept, so that a coordinator that starts again needs no step
_FINISHED_KEPT = 4


class TrainingService:
    """The members of one worker process, by train stage.

    Args:
        store: the node's scratch folder.
        fetcher: reads blocks.
        new_endpoint: makes what a member listens with.
        threads: how many shards a member computes at once.
        draining: whether the worker is about to leave.
        is_over: whether a run was closed here.
    """

    def __init__(
        self,
        store: NodeStore,
        fetcher: Fetcher,
        new_endpoint: Callable[[], Any],
        threads: int = 1,
        draining: Callable[[], bool] = lambda: False,
        is_over: Callable[[str], bool] = lambda run: False,
    ):
        self.store, self.fetcher, self._is_over = store, fetcher, is_over
        self._new_endpoint, self._threads, self._draining = new_endpoint, threads, draining
        self._members: OrderedDict[str, Member] = OrderedDict()
        self._lock = threading.Lock()

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """The RPC handlers, by operation."""
        names = ("train_open", "train_prepare", "train_start", "train_halt")
        return {f"headwater_{name}": getattr(self, name) for name in names}

    async def train_open(self, key: str, fence: Sequence[int], job: bytes | None = None) -> dict[str, Any]:
        """Take part in a train stage, and tell how far this worker is with it.

        A coordinator with a higher fence than the one before ends what that one had started.
        """
        return await asyncio.to_thread(self._open, key, _fence(fence), job)

    async def train_prepare(self, key: str, fence: Sequence[int], orders: bytes) -> dict[str, Any]:
        """Build the files of shards; answers with their summaries, or with the blocks that are lost."""
        return await asyncio.to_thread(self._prepare, key, _fence(fence), orders)

    async def train_start(self, key: str, fence: Sequence[int], orders: bytes) -> dict[str, Any]:
        """Start a generation in a thread of its own."""
        member = self._fenced(key, _fence(fence))
        if member is None:
            return {"status": "OK", "fenced": True}
        told: Orders = await asyncio.to_thread(cloudpickle.loads, orders)
        threading.Thread(target=_run, args=(member, told), name=f"train {key}", daemon=True).start()
        return {"status": "OK"}

    async def train_halt(self, key: str, fence: Sequence[int]) -> dict[str, Any]:
        """End the generation that runs; the state stays."""
        member = self._fenced(key, _fence(fence))
        if member is not None:
            member.abandon()
        return {"status": "OK"}

    def member(self, key: str) -> Member:
        """The member that this process is of a train stage."""
        with self._lock:
            return self._members[key]

    @property
    def is_training(self) -> bool:
        """Whether this process takes part in a generation."""
        with self._lock:
            return any(member.is_running for member in self._members.values())

    def forget(self, run: str) -> None:
        """A run is over."""
        with self._lock:
            gone = [key for key in self._members if key.startswith(f"{run}/")]
            members = [self._members.pop(key) for key in gone]
        for member in members:
            threading.Thread(target=member.close, daemon=True).start()  # its thread may be in a step

    def _open(self, key: str, fence: Fence, job: bytes | None) -> dict[str, Any]:
        with self._lock:
            member = self._members.get(key)
        if member is None:
            if job is None:
                return {"status": "OK", "known": False, "draining": self._draining(), "node": self.store.node}
            told: TrainJob = cloudpickle.loads(job)
            self.store.open_run(told.run, told.owner)
            made = Member(told, self._new_endpoint(), self._threads)
            with self._lock:
                member = self._members.setdefault(key, made)
                self._members.move_to_end(key)
            if member is not made:
                made.close()
            if self._is_over(told.run):  # the question came late, and nobody else will tidy up
                self.forget(told.run)
                self.store.remove_run(told.run)
                return {"status": "OK", "fenced": True}
            self._trim()
        if fence < member.fence:
            return {"status": "OK", "fenced": True}
        if fence > member.fence:
            member.fence = fence
            member.abandon()
        error = member.error
        return {
            "status": "OK",
            "known": True,
            "node": self.store.node,
            "endpoint": member.endpoint.address,
            "numerics": dict(numerics(member.job.device)),
            "step": member.step,
            "crossed": (member.traffic.to_device, member.traffic.to_host),
            "draining": self._draining(),
            "shards": held_shards(member.job, self.store, self.fetcher),
            "error": None if error is None else _packed(error),
        }

    def _prepare(self, key: str, fence: Fence, orders: bytes) -> dict[str, Any]:
        member = self._fenced(key, fence)
        if member is None:
            return {"status": "OK", "fenced": True}
        try:
            summaries = member.prepare(cloudpickle.loads(orders), self.store, self.fetcher)
        except FetchFailedError as error:
            return {"status": "OK", "lost": [list(part) for part in error.lost]}
        except Exception as error:
            return {"status": "OK", "error": _packed(error)}
        return {"status": "OK", "summaries": dumps(summaries)}

    def _fenced(self, key: str, fence: Fence) -> Member | None:
        """The member, if a coordinator with this fence may tell it what to do."""
        with self._lock:
            member = self._members.get(key)
        return member if member is not None and fence >= member.fence else None

    def _trim(self) -> None:
        with self._lock:
            finished = [key for key, member in self._members.items() if member.finished]
            gone = [self._members.pop(key) for key in finished[:-_FINISHED_KEPT]]
        for member in gone:
            member.close()


def _fence(told: Sequence[int]) -> Fence:
    epoch, attempt = told
    return epoch, attempt


def _run(member: Member, orders: Orders) -> None:
    with suppress(BaseException):  # the coordinator asks for it
        member.run(orders)


def _packed(error: BaseException) -> bytes:
    try:
        packed = dumps(error)
        cloudpickle.loads(packed)
        return packed
    except Exception:
        return dumps(RuntimeError(f"{type(error).__name__}: {error}"))
