"""NodeStore: a node's scratch folder, in which its processes publish, share and delete blocks.

    node.json                       the node's identity
    ledger.json                     bytes used, counted across processes
    runs/RUN/owner.json             the driver that the run belongs to
    runs/RUN/blocks/s2-p17-a0.arrow
    runs/RUN/shards/NAME.shard      training rows as arrays
    runs/RUN/spill/PID-...          what tasks push out of memory
    kept/KEY/p17.arrow              blocks kept across runs (see kept.py)

A file appears under its name complete or not at all.
"""

from __future__ import annotations

import json
import operator
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil

from ...errors import HeadwaterError
from ...lineage.owner import Owner, this_process
from ..task import PartitionResult
from .apart import place_apart
from .inventory import FolderIndex
from .links import bytes_of, remove_name
from .scratch_file import DRAFT_NAME, ScratchFile, Space, draft_of

#: how long, in seconds, a run is kept whose driver ran on another machine, and so may live
FOREIGN_KEEP_SECONDS = 7 * 86_400.0
_BLOCK_NAME = re.compile(r"s(\d+)-p(\d+)-a(\d+)\.arrow")


def default_scratch() -> Path:
    """Return the scratch folder of this machine: HEADWATER_SCRATCH, or one under the temporary folder."""
    given = os.environ.get("HEADWATER_SCRATCH")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"headwater-{os.getuid()}"


@dataclass(frozen=True)
class StoredBlock:
    """A block's file as found on disk; path relative to the scratch folder, bytes its size."""

    stage: int
    partition: int
    attempt: int
    path: str
    bytes: int


class NodeStore:
    """The scratch folder of one node.

    Args:
        root: the folder; made if it isn't there.
        quota_bytes: most bytes that blocks and spills may take; None leaves it to the disk.

    Example:
        >>> store = NodeStore(getfixture("tmp_path"))
        >>> folder = store.open_run("r1")
        >>> with store.create_block("r1", 0, 3, 0) as file:
        ...     _ = file.stream.write(b"rows")
        ...     _ = file.publish()
        >>> [(block.path, block.bytes) for block in store.blocks("r1")]
        [('runs/r1/blocks/s0-p3-a0.arrow', 4)]
    """

    def __init__(self, root: Path | str, quota_bytes: int | None = None):
        self.root = Path(root).absolute()
        self._runs, self.kept = self.root / "runs", self.root / "kept"
        self._runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        place_apart(self._runs)
        #: the node's id, the same in every process that uses this folder
        self.node: str = _identify(self.root)
        self.space = Space(self.root, f"node {self.node[:8]}", quota_bytes)
        self._indexes: dict[str, FolderIndex] = {}

    def resolve(self, path: str) -> Path:
        """Return the absolute path of a file of this store.

        Raises:
            HeadwaterError: the path leads out of the store.
        """
        full = Path(os.path.normpath(self.root / path))
        if not (full.is_relative_to(self._runs) or full.is_relative_to(self.kept)):
            raise HeadwaterError(f"{path!r} isn't a block of the scratch folder {self.root}.")
        return full

    def open_run(self, run: str, owner: Owner | None = None) -> Path:
        """Make a run's folder, or note that it is in use and whose it is now.

        Args:
            run: the run's id.
            owner: the driver's process; None stands for the calling one.

        Returns:
            The folder.
        """
        folder, record = self._runs / run, json.dumps((owner or this_process()).record())
        try:
            known = (folder / "owner.json").read_text()
        except FileNotFoundError:
            known = self._make_run(folder, record)
        if known == record:
            with suppress(FileNotFoundError):
                os.utime(folder / "owner.json")
        else:
            draft = draft_of(folder / "owner.json")
            draft.write_text(record)
            os.replace(draft, folder / "owner.json")
        return folder

    def create_block(
        self, run: str, stage: int, partition: int, attempt: int, quota_bytes: int | None = None
    ) -> ScratchFile:
        """Begin a block's file in an open run; it appears when it is published."""
        name = f"s{stage}-p{partition}-a{attempt}.arrow"
        return ScratchFile(self.space, self._runs / run / "blocks" / name, quota_bytes)

    def shard_path(self, run: str, name: str) -> Path:
        """Return where a run's file of training rows lies, or would lie."""
        return self._runs / run / "shards" / f"{name}.shard"

    def create_shard(self, run: str, name: str, quota_bytes: int | None = None) -> ScratchFile:
        """Begin a file of training rows in an open run; it appears when it is published."""
        target = self.shard_path(run, name)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        return ScratchFile(self.space, target, quota_bytes)

    def create_spill(self, folder: Path, quota_bytes: int | None = None) -> ScratchFile:
        """Begin a file in a task's spill folder; it is read by its draft's path and then discarded."""
        return ScratchFile(self.space, folder / "run.arrow", quota_bytes)

    @contextmanager
    def spill_folder(self, run: str, name: str) -> Iterator[Path]:
        """Make a folder for what one task spills, and remove it at the end."""
        with tempfile.TemporaryDirectory(
            prefix=f"{os.getpid()}-{name}-", dir=self._runs / run / "spill", ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)

    def blocks(self, run: str) -> list[StoredBlock]:
        """List a run's published blocks, by stage, partition and attempt."""
        found = []
        for path in self._published(run):
            if match := _BLOCK_NAME.fullmatch(path.name):
                stage, partition, attempt = map(int, match.groups())
                relative = path.relative_to(self.root).as_posix()
                found.append(StoredBlock(stage, partition, attempt, relative, path.stat().st_size))
        return sorted(found, key=lambda block: (block.stage, block.partition, block.attempt))

    def inventory(self, run: str, keys: Mapping[int, str] | None = None) -> list[PartitionResult]:
        """List a run's published blocks as their tasks reported them, by what the files themselves say.

        Args:
            run: the run's id.
            keys: stage to lineage key; blocks of other stages, or made by another key, are left out.
                None lists all.

        Returns:
            Results by stage, partition and attempt; files that are no blocks of this run are passed over.
        """
        index = self._indexes.setdefault(run, FolderIndex(self._runs / run / "blocks"))
        results = []
        for found in index.find():
            path, label = f"runs/{run}/blocks/{found.name}", found.index.label
            wanted = keys is None or keys.get(label.stage) == label.key
            if path in found.places and wanted:
                results.append(found.result(self.node, path))
        if not results and not index.folder.is_dir():
            self._indexes.pop(run, None)
        order = operator.attrgetter("block.stage", "block.partition", "block.attempt")
        return sorted(results, key=order)

    def delete_blocks(self, paths: Iterable[str]) -> int:
        """Delete blocks, given by their relative paths; those that are gone or kept are passed over.

        Returns:
            The bytes set free.
        """
        freed = 0
        with self.space.ledger.locked() as balance:
            for path in map(self.resolve, paths):
                if path.is_relative_to(self._runs):
                    freed += remove_name(path, balance)
        return freed

    def remove_run(self, run: str) -> int:
        """Delete all that a run left here; nothing happens if there is nothing.

        Returns:
            The bytes of blocks set free.
        """
        trash = self._runs / f".trash-{uuid.uuid4().hex}"
        with self.space.ledger.locked() as balance:
            try:
                os.rename(self._runs / run, trash)
            except FileNotFoundError:
                return 0
            freed = 0
            for path in [*(trash / "blocks").glob("*.arrow"), *(trash / "shards").glob("*.shard")]:
                stat = path.stat()
                if stat.st_nlink > 1:
                    path.unlink()  # now, so that the last name's removal finds itself the last
                else:
                    freed += stat.st_size
            balance.commit(-freed)
        shutil.rmtree(trash, ignore_errors=True)
        self._indexes.pop(run, None)
        return freed

    def has_run(self, run: str) -> bool:
        """Whether a run has a folder here."""
        return (self._runs / run).is_dir()

    def runs(self) -> list[str]:
        """Ids of the runs that have a folder here, sorted."""
        return sorted(path.name for path in self._runs.iterdir() if not path.name.startswith("."))

    def purge_orphans(self, keep_seconds: float = 86_400.0) -> list[str]:
        """Remove what crashes left: runs whose driver is dead, and drafts and spills of dead processes.

        Args:
            keep_seconds: how long a run of a dead driver is kept, so that it can be resumed; counted
                from the last task that began.

        Returns:
            Ids of the runs removed.
        """
        removed = [run for run in self.runs() if self._is_orphan(run, keep_seconds)]
        for run in removed:
            self.remove_run(run)
        for trash in self._runs.glob(".trash-*"):
            shutil.rmtree(trash, ignore_errors=True)
        for folder in [self._runs, *(self._runs / run for run in self.runs())]:
            purge_drafts(folder)
        with self.space.ledger.locked() as balance:
            balance.forget_the_dead()
            published = (path for run in self.runs() for path in self._published(run))
            balance.committed = bytes_of([*published, *self.kept.glob("*/p*.arrow")])
        return removed

    def _is_orphan(self, run: str, keep_seconds: float) -> bool:
        path = self._runs / run / "owner.json"
        try:
            idle = time.time() - path.stat().st_mtime
            alive = Owner(**json.loads(path.read_text())).is_alive()
        except FileNotFoundError:
            return False
        if alive is None:
            return idle >= max(keep_seconds, FOREIGN_KEEP_SECONDS)
        return not alive and idle >= keep_seconds

    def _published(self, run: str) -> Iterator[Path]:
        folder = self._runs / run
        return chain((folder / "blocks").glob("s*.arrow"), (folder / "shards").glob("*.shard"))

    def _make_run(self, folder: Path, record: str) -> str:
        """Make a run's folder with its owner in one step, so that no purge sees it without one."""
        draft = draft_of(folder)
        for part in ("blocks", "spill"):
            (draft / part).mkdir(mode=0o700, parents=True)
        (draft / "owner.json").write_text(record)
        try:
            os.rename(draft, folder)
        except OSError:  # another process was first
            shutil.rmtree(draft)
            return (folder / "owner.json").read_text()
        return record


def purge_drafts(folder: Path) -> None:
    """Delete what dead processes were writing in a folder."""
    for path in [*folder.glob(".*.tmp"), *folder.glob("blocks/.*.tmp"), *folder.glob("shards/.*.tmp")]:
        match = DRAFT_NAME.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match[1])):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in folder.glob("spill/*"):
        pid = path.name.partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _identify(root: Path) -> str:
    """Read a scratch folder's id, giving it one if no process has yet."""
    path = root / "node.json"
    if not path.exists():
        draft = root / f".node-{uuid.uuid4().hex}"
        draft.write_text(json.dumps({"node": uuid.uuid4().hex, "created": time.time()}))
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return read_identity(root)


def read_identity(root: Path | str) -> str:
    """Return the id of the node whose scratch folder this is.

    Raises:
        OSError: there is no such folder, or it can't be read from here.
    """
    return json.loads((Path(root) / "node.json").read_text())["node"]
