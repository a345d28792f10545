"""Replicate: copy whole blocks from another node to this one, under the same relative path.

For replicated `persist()`, and for what a node that leaves hands over. A copy is looked at before it appears:
it must be the block that its place says.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DiskFullError
from ...lineage.owner import Owner
from ..nodes.block_index import read_index
from ..nodes.inventory import FoundBlock
from ..nodes.kept import Kept
from ..nodes.node_store import NodeStore
from ..nodes.scratch_file import ScratchFile
from ..task import PartitionResult
from .peers import Peers
from .region import Frames

#: files that are copied together, if they are small; each takes a buffer of a megabyte
_FILES_AT_ONCE = 32
_PLACE = re.compile(r"(runs/(?P<run>[^/.][^/]*)/blocks|kept/(?P<key>[^/.][^/]*))/[^/.][^/]*\.arrow")

#: path of a block, relative to the scratch folder, and the size of the file in bytes
File = tuple[str, int]


@dataclass
class Replicas:
    """What became of the files that were to be copied.

    Attributes:
        results: the blocks that this node has now, by path; those it had before are among them.
        failed: why the others aren't here, by path.
    """

    results: dict[str, PartitionResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


async def replicate(
    store: NodeStore,
    peers: Peers,
    files: Sequence[File],
    sources: Sequence[str],
    kept: Kept | None = None,
    owner: Owner | None = None,
    is_over: Callable[[str], bool] = lambda run: False,
) -> Replicas:
    """Copy blocks of one other node to this one. Files that are here already aren't copied again.

    Args:
        store: this node's scratch folder.
        peers: to reach the other node's workers by.
        files: of the other node.
        sources: addresses of the other node's workers; they are asked in turn.
        kept: this node's kept blocks, needed to copy some.
        owner: the driver of the runs; None stands for the calling process, until a task of the run begins.
        is_over: whether a run has ended, so that nobody wants its blocks any more.

    Returns:
        What is here now, and what isn't. A full disk or a dead node isn't an error: the rest fails.
    """
    return await _Replication(store, peers, list(sources), kept, owner, is_over).run(files)


class _Replication:
    def __init__(
        self,
        store: NodeStore,
        peers: Peers,
        sources: list[str],
        kept: Kept | None,
        owner: Owner | None,
        is_over: Callable[[str], bool],
    ):
        self._store, self._peers, self._sources = store, peers, sources
        self._kept, self._owner, self._is_over = kept, owner, is_over
        self._done = Replicas()

    async def run(self, files: Sequence[File]) -> Replicas:
        wanted = await asyncio.to_thread(self._prepare, files)
        batches = list(_batches(wanted, self._peers.options.message_bytes))
        for number, batch in enumerate(batches):
            try:
                answered = await self._copy(batch)
                reason = "" if answered else "no worker of the other node answers"
            except DiskFullError as error:
                reason = str(error)
            if reason:
                self._fail((file for batch in batches[number:] for file in batch), reason)
                break
        if self._kept is not None:
            await asyncio.to_thread(self._kept.arrived, [path for path, _ in wanted])
        self._drop_evicted()
        return self._done

    def _drop_evicted(self) -> None:
        for path in [path for path in self._done.results if not self._store.resolve(path).exists()]:
            del self._done.results[path]
            self._done.failed[path] = (
                "other kept blocks are worth more than it, and there is no room for both"
            )

    def _prepare(self, files: Sequence[File]) -> list[File]:
        """Make the folders, and return the files that aren't here."""
        wanted = []
        for path, size in dict(files).items():
            match = _PLACE.fullmatch(path)
            if match is None or (match["key"] and self._kept is None):
                self._done.failed[path] = "it isn't the path of a block"
            elif match["run"] and self._is_over(match["run"]):
                self._done.failed[path] = "its run is over"
            elif result := self._read(path, self._store.resolve(path), size):
                self._done.results[path] = result
            else:
                if match["key"]:
                    self._store.resolve(path).parent.mkdir(mode=0o700, exist_ok=True)
                elif not self._store.has_run(match["run"]):
                    self._store.open_run(match["run"], self._owner)
                wanted.append((path, size))
        return wanted

    def _read(self, path: str, file: Path, size: int) -> PartitionResult | None:
        """What a file holds, if it is the block that its place says."""
        index = read_index(file)
        found = index and FoundBlock(file.name, size, index)
        if not found or path not in found.places or file.stat().st_size != size:
            return None
        return found.result(self._store.node, path)

    async def _copy(self, batch: list[File]) -> bool:
        """Copy files that travel together; False if nobody answers."""
        while batch:
            with ExitStack() as stack:
                drafts = {path: self._draft(path, stack) for path, _ in batch}
                missing = await self._fetch(batch, drafts)
                if missing is None:
                    return False
                if not missing:
                    for path, size in batch:
                        await asyncio.to_thread(self._publish, path, size, drafts[path])
                    return True
            self._fail((file for file in batch if file[0] in missing), "the other node doesn't have it")
            batch = [file for file in batch if file[0] not in missing]
        return True

    def _draft(self, path: str, stack: ExitStack) -> ScratchFile:
        return stack.enter_context(ScratchFile(self._store.space, self._store.resolve(path)))

    async def _fetch(self, batch: list[File], drafts: dict[str, ScratchFile]) -> set[str] | None:
        """Write what comes to the drafts; returns what the other node lacks, None if nobody answers."""
        check = [path for path, _ in batch]
        for ranges in _messages(batch, self._peers.options.message_bytes):
            reply = await self._peers.ask(self._sources, [], ranges=ranges, check=check)
            if reply is None or reply["missing"]:
                return reply and set(reply["missing"])
            await asyncio.to_thread(_land, ranges, reply["frames"], drafts)
        return set()

    def _publish(self, path: str, size: int, draft: ScratchFile) -> None:
        draft.finish()
        if result := self._read(path, draft.draft, size):
            draft.publish()
            self._done.results[path] = result
        else:
            self._fail([(path, size)], "what came isn't the block that its path says")

    def _fail(self, files: Iterable[File], reason: str) -> None:
        done = self._done
        done.failed.update((path, reason) for path, _ in files if path not in {**done.results, **done.failed})


def _land(ranges: list[tuple[str, int, int]], frames: Sequence[Any], drafts: dict[str, ScratchFile]) -> None:
    reply = Frames(frames)
    for path, _, length in ranges:
        draft = drafts[path]
        with draft.space.full_disk_explained():
            for data in reply.take(length):
                draft.stream.write(data)
        draft.account()


def _batches(files: Sequence[File], message_bytes: int) -> Iterator[list[File]]:
    """Group files so that a group fits into a message, or is one large file."""
    batch: list[File] = []
    size = 0
    for file in files:
        if batch and (size + file[1] > message_bytes or len(batch) == _FILES_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file[1]
    if batch:
        yield batch


def _messages(batch: Sequence[File], message_bytes: int) -> Iterator[list[tuple[str, int, int]]]:
    if len(batch) > 1:
        yield [(path, 0, size) for path, size in batch]
        return
    for path, size in batch:
        for start in range(0, size, message_bytes):
            yield [(path, start, min(message_bytes, size - start))]
