"""What a driver asks of the nodes' kept blocks: to keep, to copy, to tell, to drop. For one run, in its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ..lineage.owner import this_process
from ..planner.plan import Storage
from .copies import choose_targets
from .nodes.inventory import unpack_inventory
from .reuse import NodeKeeps, renamed
from .scheduler_events import BlocksFound
from .task import Block, PartitionResult
from .workers.kept_service import unpack_kept

#: seconds to give nodes for an answer, and for looking through or keeping many blocks
_ANSWER_SECONDS = 10.0
_SURVEY_SECONDS = 30.0
#: bytes a second that copies of kept blocks take at the slowest, before they are given up
_COPY_RATE = 5e6

#: calls a handler of a worker: address, operation, seconds, arguments; None if there is no answer
Ask = Callable[..., Awaitable[dict[str, Any] | None]]


class KeptClient:
    """The kept blocks of all nodes, as one run sees them.

    Args:
        run: its id.
        ask: calls a handler of a worker.
        nodes: returns the addresses of each node's workers.
        found: is told of copies.
    """

    def __init__(
        self,
        run: str,
        ask: Ask,
        nodes: Callable[[], Mapping[str, Sequence[str]]],
        found: Callable[[BlocksFound], None],
    ):
        self._run, self._ask, self._nodes, self._found = run, ask, nodes, found
        #: lineage keys of what the run may read, and ids of the stages
        self._stages: Mapping[str, Sequence[int]] = {}

    async def keep(
        self, node: str, blocks: Sequence[Block], storage: Storage | None
    ) -> list[PartitionResult]:
        """Have a node keep blocks of one stage.

        Returns:
            What it keeps of them, as results of this run.
        """
        wish = {"paths": [block.path for block in blocks], "pinned": storage is not None, **_wish(storage)}
        reply = await self._first(node, "keep", _SURVEY_SECONDS, **wish)
        return [] if reply is None else list(renamed(unpack_inventory(reply)[1], blocks[0].stage))

    async def copy(self, source: str, results: Sequence[PartitionResult], storage: Storage) -> None:
        """Have other nodes copy what a node keeps of one stage, and tell of the copies."""
        blocks = [result.block for result in results if result.block is not None]
        if blocks and storage.replicas > 1:
            key = _key(blocks[0].path)
            chosen = choose_targets(key, results, self._nodes(), storage.replicas)
            await asyncio.gather(
                *(self._copy_to(node, source, key, wanted, storage) for node, wanted in chosen.items())
            )

    async def _copy_to(
        self, node: str, source: str, key: str, blocks: Sequence[Block], storage: Storage
    ) -> None:
        wish = _wish(storage)
        files = [(block.path, block.bytes) for block in blocks]
        seconds = _SURVEY_SECONDS + sum(size for _, size in files) / _COPY_RATE
        sources = list(self._nodes().get(source, ()))
        await self._first(node, "pin", _ANSWER_SECONDS, keys=[key], owner=wish["owner"])
        reply = await self._first(node, "replicate", seconds, files=files, source=sources, **wish)
        if reply is not None:
            self._found(BlocksFound(node, renamed(unpack_inventory(reply)[1], blocks[0].stage)))

    async def use(
        self, stages: Mapping[str, Sequence[int]], pinned: Mapping[str, Storage]
    ) -> list[NodeKeeps]:
        """Ask all nodes what they keep of stages; they don't give it up during the run.

        Args:
            stages: lineage keys of stages, and their ids.
            pinned: those to be kept as long as this process lives, and how.
        """
        self._stages = stages
        resident = [key for key, storage in pinned.items() if storage.level == "memory"]
        owner = this_process().record()
        wish = {"keys": list(stages), "pinned": list(pinned), "resident": resident, "owner": owner}
        calls = (self._first(node, "use", _SURVEY_SECONDS, run=self._run, **wish) for node in self._nodes())
        return [unpack_kept(reply) for reply in await asyncio.gather(*calls) if reply is not None]

    def reads(self, paths: Sequence[str]) -> bool:
        """Whether the run may read one of these kept blocks."""
        return any(_key(path) in self._stages for path in paths)

    async def look(self, node: str, paths: Sequence[str]) -> None:
        """Kept blocks were moved to a node: tell of those that the run may read."""
        keys = sorted({_key(path) for path in paths} & self._stages.keys())
        reply = await self._first(node, "use", _SURVEY_SECONDS, run=self._run, keys=keys)
        if reply is not None:
            for key, results in unpack_kept(reply)[1].items():
                moved = [result for result in results if f"kept/{key}/p{result.index}.arrow" in paths]
                for id in self._stages[key]:
                    self._found(BlocksFound(node, renamed(moved, id)))

    async def drop(self, keys: Sequence[str]) -> None:
        """Have all nodes delete what they keep of stages, as far as nobody else needs it."""
        wish = {"keys": list(keys), "run": self._run, "owner": this_process().record()}
        await asyncio.gather(*(self._first(node, "drop", _SURVEY_SECONDS, **wish) for node in self._nodes()))

    async def _first(self, node: str, operation: str, seconds: float, **wish: Any) -> dict[str, Any] | None:
        """Call a handler of a node's first worker that answers."""
        for address in self._nodes().get(node, ()):
            reply = await self._ask(address, operation, seconds, **wish)
            if reply is not None:
                return reply
        return None


def _key(path: str) -> str:
    """The lineage key of a kept block's stage."""
    return path.split("/")[1]


def _wish(storage: Storage | None) -> dict[str, Any]:
    """Whose blocks are, and whether they are to be held in memory: for `KeptService`."""
    if storage is None:
        return {"owner": None, "resident": False}
    return {"owner": this_process().record(), "resident": storage.level == "memory"}
