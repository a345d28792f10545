"""What a worker answers about kept blocks and copies: its RPC handlers, as a driver or another worker calls them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed.core import ConnectionPool

from ...lineage.owner import Owner
from ..nodes.inventory import pack_inventory
from ..nodes.kept import Kept
from ..nodes.resident import Resident
from ..task import PartitionResult
from .peers import FetchOptions, Peers
from .replicate import replicate

#: seconds between two looks whether somebody still wants what is held in memory
_TIDY_SECONDS = 10.0


class KeptService:
    """The handlers of one worker.

    Args:
        kept: of the worker's node.
        rpc: the worker's connection pool.
        options: for copies.
        resident: holds in memory what is persisted there.
        is_over: whether a run has ended, so that its blocks need no copies.
    """

    def __init__(
        self,
        kept: Kept,
        rpc: ConnectionPool,
        options: FetchOptions | None = None,
        resident: Resident | None = None,
        is_over: Callable[[str], bool] = lambda run: False,
    ):
        self._kept, self._rpc, self._options = kept, rpc, options or FetchOptions()
        self._resident = resident or Resident()
        self._is_over = is_over
        self._watch: asyncio.Task[None] | None = None

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """Return the handlers by name."""
        calls = (self.keep, self.kept, self.use, self.pin, self.unpin, self.drop, self.replicate)
        return {f"headwater_{call.__name__}": call for call in calls}

    async def keep(
        self, paths: Any, pinned: bool = False, owner: Any = None, resident: bool = False
    ) -> dict[str, Any]:
        """Keep blocks beyond their run, see `Kept.keep`, and in memory if they are to be ``resident``.

        The answer is for `unpack_inventory`.
        """
        found = await asyncio.to_thread(self._kept.keep, list(paths), pinned, _owner(owner))
        if resident:
            await self._hold(found)
        return pack_inventory(self._kept.store.node, found)

    async def kept(self, keys: Any) -> dict[str, Any]:
        """Tell what is kept of stages; the answer is for `unpack_kept`."""
        return self._found(await asyncio.to_thread(self._kept.inventory, list(keys)))

    async def use(
        self, run: str, keys: Any, owner: Any = None, pinned: Any = (), resident: Any = ()
    ) -> dict[str, Any]:
        """As `kept`, and leave what is there alone as long as the run has a folder here; see `Kept.use`.

        Blocks of the ``resident`` keys are held in memory.
        """
        found = await asyncio.to_thread(self._kept.use, run, list(keys), _owner(owner), list(pinned))
        await self._hold([result for key in resident for result in found.get(key, ())])
        return self._found(found)

    async def pin(self, keys: Any, owner: Any = None) -> dict[str, Any]:
        """Keep stages' blocks, those to come, too, whatever is needed."""
        await asyncio.to_thread(self._kept.pin, list(keys), _owner(owner))
        return {"status": "OK"}

    async def unpin(self, keys: Any, owner: Any = None) -> dict[str, Any]:
        """Let stages' blocks go when room is needed; without an owner whatever anybody has pinned."""
        await asyncio.to_thread(self._kept.unpin, list(keys), _owner(owner))
        await asyncio.to_thread(self._tidy)
        return {"status": "OK"}

    async def drop(self, keys: Any, owner: Any = None, run: str | None = None) -> dict[str, Any]:
        """Delete what is kept of stages, see `Kept.drop`."""
        freed = await asyncio.to_thread(self._kept.drop, list(keys), _owner(owner), run)
        await asyncio.to_thread(self._tidy)
        return {"status": "OK", "freed_bytes": freed}

    async def replicate(
        self, files: Any, source: Any, owner: Any = None, resident: bool = False
    ) -> dict[str, Any]:
        """Copy blocks of another node to this one.

        Args:
            files: (path, bytes) of each.
            source: address of a worker of the other node, or several.
            owner: record of the driver's `Owner`.
            resident: whether to hold the copies in memory.

        Returns:
            ``paths`` that are here now, ``failed`` with a reason for each other path; and, for
            `unpack_inventory`, the blocks.
        """
        sources = [source] if isinstance(source, str) else list(source)
        peers = Peers(self._rpc, asyncio.get_running_loop(), self._options)
        wanted = [(path, size) for path, size in files]
        store, kept = self._kept.store, self._kept
        done = await replicate(store, peers, wanted, sources, kept, _owner(owner), self._is_over)
        if resident:
            await self._hold(list(done.results.values()))
        reply = pack_inventory(self._kept.store.node, done.results.values())
        return {**reply, "paths": list(done.results), "failed": done.failed}

    async def _hold(self, results: Sequence[PartitionResult]) -> None:
        """Hold blocks in memory until nobody wants them any more."""
        paths: dict[str, list[Path]] = {}
        for path in (self._kept.store.resolve(result.block.path) for result in results if result.block):
            paths.setdefault(path.parent.name, []).append(path)
        for key, files in paths.items():
            await asyncio.to_thread(self._resident.hold, key, files)
        if paths and (self._watch is None or self._watch.done()):
            self._watch = asyncio.create_task(self._watch_over())

    async def _watch_over(self) -> None:
        """Let go of what belonged to processes that have died."""
        while self._resident.keys():
            await asyncio.sleep(_TIDY_SECONDS)
            await asyncio.to_thread(self._tidy)

    def _tidy(self) -> None:
        held = self._resident.keys()
        self._resident.release([key for key in held if not self._kept.is_wanted(key)])

    def _found(self, found: Mapping[str, Sequence[PartitionResult]]) -> dict[str, Any]:
        results = {key: tuple(results) for key, results in found.items() if results}
        return {"status": "OK", "node": self._kept.store.node, "kept": pickle.dumps(results, protocol=5)}


def unpack_kept(reply: Mapping[str, Any]) -> tuple[str, dict[str, tuple[PartitionResult, ...]]]:
    """Return the node that answered, and what it keeps, by key; keys of which it has nothing are left out."""
    return reply["node"], pickle.loads(reply["kept"])


def _owner(record: Mapping[str, Any] | None) -> Owner | None:
    return Owner(**record) if record else None
