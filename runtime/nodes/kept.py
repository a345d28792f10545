"""Kept: blocks that outlive their run on a node, for `persist()` and for reuse, within a bound.

    kept/KEY/p17.arrow      a partition of the stage of that lineage key; the block itself, by a second name
    kept/KEY/meta.json      when the key was last used
    kept/KEY/users, pins    who reads them, who wants them kept (see kept_marks.py)
    kept/floor.json         see eviction.py

Blocks that are pinned or in use are never given up. Others are when they exceed the bound, or when a run
needs the room. Same key, same content: whoever comes second finds the block there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...lineage.owner import Owner, this_process
from ..task import PartitionResult
from .block_index import BlockLabel, read_index
from .eviction import Evictable, choose_victims
from .inventory import FolderIndex, FoundBlock
from .kept_marks import (
    in_use,
    is_pinned,
    is_wanted,
    mark_pin,
    mark_user,
    purge_marks,
    purge_users,
    remove_pins,
    unmark_user,
)
from .links import bytes_of, remove_name
from .node_store import NodeStore, purge_drafts
from .scratch_file import draft_of

_KEY = re.compile(r"[0-9A-Za-z_-]{1,128}")
_NAME = re.compile(r"p\d+\.arrow")
#: more files than this are put on disk by one call for all, which is some ten times faster
_FLUSHED_ALONE = 16


@dataclass(frozen=True)
class KeptKey:
    """What a node keeps of one stage.

    Attributes:
        key: the stage's lineage key.
        partitions, bytes: how many blocks, and their size.
        seconds: that making them took.
        used: when they were last used, in seconds since the epoch.
        pinned, in_use: whether a session wants them kept; whether a run reads them.
    """

    key: str
    partitions: int
    bytes: int
    seconds: float
    used: float
    pinned: bool
    in_use: bool


class Kept:
    """The kept blocks of one node, shared by all processes that use its scratch folder.

    Args:
        store: the node's scratch folder. From now on it makes room by giving up kept blocks.
        limit_bytes: most bytes to keep. None is half of the folder's quota, or, without one, half of what
            the disk has for it.

    Example:
        >>> store = NodeStore(getfixture("tmp_path"))
        >>> kept = Kept(store, limit_bytes=1 << 30)
        >>> kept.inventory(["4f2a"]), kept.used_bytes()
        ({'4f2a': []}, 0)
    """

    def __init__(self, store: NodeStore, limit_bytes: int | None = None):
        self.store, self._limit = store, limit_bytes
        self._root = store.kept
        self._root.mkdir(mode=0o700, exist_ok=True)
        self._indexes: dict[str, FolderIndex] = {}
        store.space.make_room = self.make_room

    def keep(
        self, paths: Sequence[str], pinned: bool = False, owner: Owner | None = None
    ) -> list[PartitionResult]:
        """Keep published blocks beyond their run; it costs no room while the run's own lie there.

        Args:
            paths: of blocks of this node, relative to the scratch folder.
            pinned: whether to keep them whatever is needed.
            owner: whose pin it is: it ends with that process. None pins until `unpin`.

        Returns:
            The kept blocks, as they lie here now. A block is left out if it is gone, doesn't describe itself,
            or is worth less than what fills the bound. Its content may have been kept by another run.
        """
        indexes = {source: read_index(source) for source in map(self.store.resolve, paths)}
        labels = {source: index.label for source, index in indexes.items() if index}
        labels = {source: label for source, label in labels.items() if _KEY.fullmatch(label.key)}
        refused = self._refuse(labels, pinned)
        labels = {source: label for source, label in labels.items() if source not in refused}
        _flush([source for source, label in labels.items() if not self._path_of(label).exists()])
        wanted: set[tuple[str, int]] = set()
        with self.store.space.ledger.locked():
            for source, label in labels.items():
                target = self._path_of(label)
                target.parent.mkdir(mode=0o700, exist_ok=True)
                with suppress(FileNotFoundError):  # deleted since
                    with suppress(FileExistsError):
                        os.link(source, target)
                    wanted.add((label.key, label.partition))
            for key in {key for key, _ in wanted}:
                self._touch(key)
                if pinned:
                    mark_pin(self._folder(key), owner)
        found = self.inventory(sorted({key for key, _ in wanted}))
        return [result for key in found for result in found[key] if (key, result.index) in wanted]

    def inventory(self, keys: Iterable[str]) -> dict[str, list[PartitionResult]]:
        """List the blocks that are kept of stages.

        Returns:
            For each key asked for, results by partition. A block's stage and attempt are those of the run
            that made it.
        """
        return {
            key: [found.result(self.store.node, f"kept/{key}/{found.name}") for found in self._find(key)]
            for key in dict.fromkeys(keys)
        }

    def use(
        self, run: str, keys: Iterable[str], owner: Owner | None = None, pinned: Iterable[str] = ()
    ) -> dict[str, list[PartitionResult]]:
        """Let a run read the blocks of stages: until the run is removed here, they stay.

        Args:
            run: the run's id; its folder is opened if it isn't yet.
            keys: lineage keys of stages.
            owner: the run's driver; None stands for the calling process.
            pinned: those that the owner wants kept, even when the run is over.

        Returns:
            As `inventory`: what the run can count on.
        """
        keys, pinned = list(keys), set(pinned)
        if not self.store.has_run(run):
            self.store.open_run(run, owner)
        with self.store.space.ledger.locked():
            for key in keys:
                if self._folder(key).is_dir():
                    self._touch(key)
                    purge_users(self._folder(key), self.store)
                    mark_user(self._folder(key), run)
                    if key in pinned:
                        mark_pin(self._folder(key), owner or this_process())
        return self.inventory(keys)

    def pin(self, keys: Iterable[str], owner: Owner | None = None) -> None:
        """Keep stages' blocks, and those that come, whatever is needed; `owner` as in `keep`."""
        with self.store.space.ledger.locked():
            for key in keys:
                self._folder(key).mkdir(mode=0o700, exist_ok=True)
                self._touch(key)
                mark_pin(self._folder(key), owner)

    def unpin(self, keys: Iterable[str], owner: Owner | None = None) -> None:
        """Take an owner's pins off, or, without an owner, all; the blocks stay until room is needed."""
        with self.store.space.ledger.locked():
            for key in keys:
                remove_pins(self._folder(key), owner)

    def drop(self, keys: Iterable[str], owner: Owner | None = None, run: str | None = None) -> int:
        """Unpin stages and delete their blocks; those that a run reads stay until room is needed.

        Args:
            keys: lineage keys of stages.
            owner: whose pins to take off; what others have pinned stays. None takes all pins off.
            run: a run that reads them no more.

        Returns:
            The bytes set free; none for blocks whose own run still has them.
        """
        freed = 0
        with self._trash() as trash, self.store.space.ledger.locked() as balance:
            for key in keys:
                remove_pins(self._folder(key), owner)
                if run is not None:
                    unmark_user(self._folder(key), run)
                if not self._is_held(key):
                    freed += sum(remove_name(path, balance, trash) for path in self._files(key))
                    self._remove_if_empty(key)
        return freed

    def is_wanted(self, key: str) -> bool:
        """Whether a living process, or anybody until further notice, has pinned a stage's blocks."""
        return is_wanted(self._folder(key))

    def used_bytes(self) -> int:
        """Bytes of all kept blocks, those that their runs still have included."""
        return bytes_of(path for key in self._keys() for path in self._files(key))

    def limit_bytes(self) -> int:
        """Most bytes to keep."""
        if self._limit is not None:
            return self._limit
        quota = self.store.space.quota_bytes
        if quota is not None:
            return quota // 2
        return (shutil.disk_usage(self._root).free + self.used_bytes()) // 2

    def summary(self) -> list[KeptKey]:
        """List what is kept, by key."""
        return [self._summary(key) for key in self._keys()]

    def arrived(self, paths: Iterable[str]) -> None:
        """Count blocks that were copied into the kept folder as used now, and keep the bound."""
        files = [path for path in map(self.store.resolve, paths) if path.is_relative_to(self._root)]
        with self.store.space.ledger.locked():
            for key in {path.parent.name for path in files if path.exists()}:
                self._touch(key)
        self._shrink(files)

    def make_room(self, bytes: int) -> int:
        """Give up blocks that no run has any more, least valuable first.

        Args:
            bytes: how much room is needed.

        Returns:
            The bytes set free, less than needed if there is no more to give up.
        """
        return self._evict(bytes, alone=True)

    def purge(self) -> None:
        """Remove what crashes left: drafts, pins and marks of the dead, and files that aren't whole."""
        for trash in self._root.glob(".trash-*"):
            shutil.rmtree(trash, ignore_errors=True)
        purge_drafts(self._root)
        for key in self._keys():
            purge_drafts(self._folder(key))
            self._find(key)  # slow the first time, and so before the ledger is locked
            with self._trash() as trash, self.store.space.ledger.locked() as balance:
                good = {found.name for found in self._find(key)}
                for path in self._files(key):
                    if path.name not in good:
                        remove_name(path, balance, trash)
                purge_marks(self._folder(key), self.store)
                self._remove_if_empty(key)
        self._shrink([])

    def _refuse(self, labels: Mapping[Path, BlockLabel], pinned: bool) -> set[Path]:
        """Make what is to be kept fit the bound; returns which of it can't be, or isn't worth it."""
        fresh: dict[Evictable, Path] = {}
        now, floor = time.time(), self._floor()
        for source, label in labels.items():
            if not self._path_of(label).exists():
                size = bytes_of([source])
                fresh[Evictable(label.key, label.partition, size, label.seconds, floor, now)] = source
        limit, coming = self.limit_bytes(), sum(block.bytes for block in fresh)
        if (excess := self.used_bytes() + coming - limit) <= 0:
            return set()
        rivals = [*self._evictable(alone=False), *([] if pinned else fresh)]
        victims, floor = choose_victims(rivals, excess, floor)
        self._give_up([victim for victim in victims if victim not in fresh], floor)
        refused = fresh.keys() & set(victims)
        excess = self.used_bytes() + coming - sum(block.bytes for block in refused) - limit
        for block in reversed(fresh):
            if excess > 0 and block not in refused:
                excess -= block.bytes
                refused.add(block)
        return {fresh[block] for block in refused}

    def _shrink(self, fresh: Sequence[Path]) -> None:
        """Get within the bound; if nothing else can be given up, by removing files that have just come."""
        limit = self.limit_bytes()
        if (excess := self.used_bytes() - limit) > 0:
            self._evict(excess, alone=False)
        if fresh and (excess := self.used_bytes() - limit) > 0:
            with self._trash() as trash, self.store.space.ledger.locked() as balance:
                for path in reversed(fresh):
                    if excess > 0 and not in_use(path.parent, self.store):
                        excess -= bytes_of([path])
                        remove_name(path, balance, trash)

    def _evict(self, bytes: int, alone: bool) -> int:
        """Give up blocks of so many bytes, if ``alone`` only those with no other name."""
        if bytes <= 0:
            return 0
        return self._give_up(*choose_victims(self._evictable(alone), bytes, self._floor()))

    def _give_up(self, victims: Sequence[Evictable], floor: float) -> int:
        """Remove blocks. They were chosen without the lock, so each is looked at again before it goes."""
        if not victims:
            return 0
        freed = 0
        with self._trash() as trash, self.store.space.ledger.locked() as balance:
            for victim in victims:
                if not self._is_held(victim.key):
                    freed += remove_name(self._path(victim.key, victim.partition), balance, trash)
            for key in {victim.key for victim in victims}:
                self._remove_if_empty(key)
            _write(self._root / "floor.json", {"floor": max(floor, self._floor())})
        return freed

    def _evictable(self, alone: bool) -> Iterator[Evictable]:
        for key in self._keys():
            if self._is_held(key):
                continue
            used, floor = self._last_use(key)
            for found in self._find(key):
                if alone and _names(self._folder(key) / found.name) != 1:
                    continue
                label = found.index.label
                yield Evictable(key, label.partition, found.bytes, label.seconds, floor, used)

    def _find(self, key: str) -> list[FoundBlock]:
        """The blocks of a key that are what their names say, by partition."""
        index = self._indexes.setdefault(key, FolderIndex(self._folder(key)))
        found = [block for block in index.find() if f"kept/{key}/{block.name}" in block.places]
        if not found:
            self._indexes.pop(key, None)
        return sorted(found, key=lambda block: block.index.label.partition)

    def _summary(self, key: str) -> KeptKey:
        found = self._find(key)
        return KeptKey(
            key,
            len(found),
            sum(block.bytes for block in found),
            sum(block.index.label.seconds for block in found),
            self._last_use(key)[0],
            is_pinned(self._folder(key)),
            in_use(self._folder(key), self.store),
        )

    def _is_held(self, key: str) -> bool:
        return is_pinned(self._folder(key)) or in_use(self._folder(key), self.store)

    def _touch(self, key: str) -> None:
        _write(self._folder(key) / "meta.json", {"used": time.time(), "floor": self._floor()})

    def _remove_if_empty(self, key: str) -> None:
        folder = self._folder(key)
        if folder.is_dir() and not any(folder.glob("*.arrow*")) and not self._is_held(key):
            shutil.rmtree(folder, ignore_errors=True)

    def _last_use(self, key: str) -> tuple[float, float]:
        record = _read(self._folder(key) / "meta.json")
        return record.get("used", 0.0), record.get("floor", 0.0)

    def _floor(self) -> float:
        return _read(self._root / "floor.json").get("floor", 0.0)

    def _keys(self) -> list[str]:
        return sorted(
            path.name for path in self._root.iterdir() if _KEY.fullmatch(path.name) and path.is_dir()
        )

    def _files(self, key: str) -> list[Path]:
        return [path for path in self._folder(key).glob("p*.arrow") if _NAME.fullmatch(path.name)]

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no lineage key")
        return self._root / key

    def _path_of(self, label: BlockLabel) -> Path:
        return self._path(label.key, label.partition)

    def _path(self, key: str, partition: int) -> Path:
        return self._folder(key) / f"p{partition}.arrow"

    @contextmanager
    def _trash(self) -> Iterator[Path]:
        """A folder that is emptied at the end, when the ledger isn't locked any more."""
        folder = self._root / f".trash-{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _names(path: Path) -> int:
    try:
        return path.stat().st_nlink
    except FileNotFoundError:
        return 0


def _flush(paths: Sequence[Path]) -> None:
    """Have files on disk, so that a power failure can't leave a kept block with holes."""
    if len(paths) > _FLUSHED_ALONE:
        os.sync()
        return
    for path in paths:
        with suppress(FileNotFoundError):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def _read(path: Path) -> dict[str, float]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write(path: Path, record: dict[str, float]) -> None:
    draft = draft_of(path)
    draft.write_text(json.dumps(record))
    os.replace(draft, path)
