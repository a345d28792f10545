"""Journal: what a run has decided, written before it takes effect, as small files written once.

A journal is a folder ``ROOT/RUN/`` of segments ``000000.json``, ``000001.json``, ... on any fsspec URL.
A segment is a JSON list of records; a record is a list whose first item names its kind:

    ["started", {run, pipeline, time, host, pid, pid_started, cluster}]
    ["resumed", {epoch, time, host, pid, pid_started, cluster}]
    ["plan", [[stage, key, label, partitions, [[source, dependency, start, stop], ...], has a sink],
             ...], {output: stage}]
    ["boundaries", stage, base64 of an Arrow stream]      ["stage", stage, rows]
    ["task", stage, task, attempt, node, [[partition, rows, bytes, fingerprint(, files)], ...], seconds]
        files, of a sink: [[path, target, rows, bytes], ...] that are staged
    ["adopted", stage, node, [[partition, attempt, rows, bytes, fingerprint], ...]]   results found on a node
    ["replicated", stage, partition, node]                another node has a copy
    ["moved", source node, target node, [[stage, partition], ...]]
    ["failed", stage, task, attempt, kind, error]
    ["worker lost", address, node, node lost too(, cause, silent seconds)]
    ["rerun", stage, partitions]                          lost and made again; fingerprints must match
    ["rolled back", stage, partitions]                    forgotten: made from bytes that changed
    ["skipped", stage, partitions]                        not needed: something later was there already
    ["committing", output, paths]                         ["committed", output]
    ["finished" | "stopped" | "failed run" | "interrupted", {time, error, report}]

One turn of the driver's loop is one segment (group commit), so a run costs a few KB. A segment is written only
if there is none of its number, so the journal is a log that two drivers can't both append to: the one that
finds its next segment written was replaced, and stops. ``plan.bin`` beside them is what `Journal.put_blob` keeps,
``epoch-000003.json`` a lease (see `lineage.lease`).
"""

from __future__ import annotations

import json
import platform
import re
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import psutil
from fsspec.implementations.local import LocalFileSystem

from ..errors import CorruptFileError, FencedError, SourceNotFoundError, did_you_mean
from .lease import fenced, holder
from .run_folder import create, default_root, names_in, open_root

__all__ = ["STATES", "Journal", "RunEntry", "default_root", "find_run", "list_runs", "new_run_id", "read"]

#: kinds of a run's last record, and the state each leaves it in
STATES = {
    "finished": "finished",
    "stopped": "stopped",
    "failed run": "failed",
    "interrupted": "interrupted",
}

_SEGMENT = re.compile(r"\d{6,}\.json")
#: blobs smaller than this are compressed as well as can be
_SMALL_BYTES = 256 << 10
#: names the writer of a segment, where a put may be repeated
_TOKEN = "by"
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def new_run_id() -> str:
    """Make a run's id, which sorts by time.

    Example:
        >>> len(new_run_id())
        20
    """
    tail = "".join(secrets.choice(_ALPHABET) for _ in range(4))
    return f"{datetime.now():%Y%m%d-%H%M%S}-{tail}"


class Journal:
    """The journal of one run, open for writing by one driver.

    Args:
        root: folder of journals, a path or any fsspec URL; None is `default_root`.
        run: the run's id; None makes a new one.

    Attributes:
        run: the run's id.
        bytes: of all that the journal holds, blobs included.

    Example:
        >>> journal = Journal(getfixture("tmp_path"), "20261123-153012-x7k2")
        >>> journal.append([["stage", 0, 7]])
        >>> list(read(journal.run, getfixture("tmp_path")))
        [['stage', 0, 7]]
    """

    def __init__(self, root: str | Path | None = None, run: str | None = None):
        self.run = run or new_run_id()
        self._fs, base = open_root(root)
        self._folder = f"{base}/{self.run}"
        self._fs.makedirs(self._folder, exist_ok=True)
        names = names_in(self._fs, self._folder)
        segments = _segments(names)
        self.bytes = sum(names[name] for name in names if name in segments or name.endswith(".bin"))
        self._next = _number(segments[-1]) + 1 if segments else 0
        # a store may repeat a put whose answer was lost, and must not take its own file for another driver's
        self._mark = [] if isinstance(self._fs, LocalFileSystem) else [[_TOKEN, secrets.token_hex(4)]]

    @classmethod
    def create(
        cls,
        root: str | Path | None = None,
        header: dict[str, Any] | None = None,
        run: str | None = None,
    ) -> Journal:
        """Begin the journal of a new run.

        Args:
            root: folder of journals; None is `default_root`.
            header: what to say of the run: pipeline, versions, stages, options.
            run: the run's id, as the lease has it; None makes a new one.

        Returns:
            The journal, its first record written.

        Raises:
            FencedError: another driver has begun this run.
        """
        journal = cls(root, run)
        journal._next = 0
        journal.start(header or {})
        return journal

    @classmethod
    def open(cls, run: str, root: str | Path | None = None) -> Journal:
        """Go on with the journal of a run that exists, after its last segment.

        Raises:
            SourceNotFoundError: there is no such run.
        """
        fs, base = open_root(root)
        if not _segments(names_in(fs, f"{base}/{run}")):
            raise _no_run(run, fs, base)
        return cls(root, run)

    @classmethod
    def resume(
        cls, run: str, epoch: int, root: str | Path | None = None, header: dict[str, Any] | None = None
    ) -> tuple[Journal, list[list[Any]]]:
        """Take the journal of a run over, as its next driver: after this, none before can append.

        Args:
            run: the run's id.
            epoch: of the lease.
            root: folder of journals; None is `default_root`.
            header: what to say of the driver: cluster.

        Returns:
            The journal, and all its records; the last one is "resumed".

        Raises:
            SourceNotFoundError: there is no such run.
            FencedError: a driver of this or a later epoch was here.
        """
        journal = cls.open(run, root)
        record = ["resumed", {"epoch": epoch, **_this_driver(), **(header or {})}]
        records: list[list[Any]] = []
        first = 0
        while True:
            fs, folder = journal._fs, journal._folder
            segments = [n for n in _segments(names_in(fs, folder)) if _number(n) >= first]
            more = list(_records(fs, folder, segments))
            records += more
            first = journal._next = _number(segments[-1]) + 1 if segments else first
            if any(_epoch_of(other) >= epoch for other in more):
                raise fenced(fs, folder, run)
            try:
                journal.append([record])
            except FencedError:  # the driver before still lived, and wrote once more
                continue
            return journal, [*records, record]

    def start(self, header: dict[str, Any]) -> None:
        """Write the first record: what runs, since when, in which process."""
        self.append([["started", {"run": self.run, **_this_driver(), **header}]])

    def append(self, records: Sequence[Sequence[Any]]) -> None:
        """Write records, if there are any, as one segment; they are safe when this returns.

        Raises:
            FencedError: another driver took the run over; nothing was written.
        """
        if not records:
            return
        data = json.dumps([*records, *self._mark], separators=(",", ":"), default=str).encode() + b"\n"
        self._create(f"{self._next:06d}.json", data)
        self._next += 1

    def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes beside the records, compressed, once.

        Args:
            name: of the file, as "plan.bin".
            data: its bytes.

        Raises:
            FencedError: another driver has written it.
        """
        self._create(name, zlib.compress(data, 9 if len(data) < _SMALL_BYTES else 1))

    def get_blob(self, name: str) -> bytes:
        """Read what `put_blob` kept.

        Raises:
            SourceNotFoundError: there is no blob of that name.
            CorruptFileError: it is damaged.
        """
        path = f"{self._folder}/{name}"
        try:
            return zlib.decompress(self._fs.cat_file(path))
        except FileNotFoundError:
            raise SourceNotFoundError(
                f"the journal of run {self.run} has no {name}: its driver died before it wrote that, or is of a "
                "version that didn't. Start the run anew."
            ) from None
        except zlib.error as error:
            raise CorruptFileError(f"{path} is damaged: {error}. Start the run anew.") from error

    def end(
        self, kind: str, error: BaseException | None = None, report: dict[str, Any] | None = None
    ) -> None:
        """Write a run's last record.

        Args:
            kind: one of `STATES`.
            error: why it ended, if not well.
            report: the run report.
        """
        text = None if error is None else f"{type(error).__name__}: {error}"
        self.append([[kind, {"time": time.time(), "error": text, "report": report}]])

    def _create(self, name: str, data: bytes) -> None:
        try:
            create(self._fs, f"{self._folder}/{name}", data)
        except FileExistsError:
            raise fenced(self._fs, self._folder, self.run) from None
        self.bytes += len(data)


def read(run: str, root: str | Path | None = None) -> Iterator[list[Any]]:
    """Yield a run's records in the order they were written.

    Args:
        run: its id.
        root: folder of journals; None is `default_root`.

    Raises:
        SourceNotFoundError: there is no such run.
        CorruptFileError: a segment is damaged.
    """
    fs, base = open_root(root)
    segments = _segments(names_in(fs, f"{base}/{run}"))
    if not segments:
        raise _no_run(run, fs, base)
    yield from _records(fs, f"{base}/{run}", segments)


@dataclass(frozen=True)
class RunEntry:
    """One run in the list of runs.

    Attributes:
        run: its id.
        pipeline: its name.
        state: "running", "finished", "stopped", "failed", "interrupted" or "died".
        started: seconds since the epoch.
        seconds: how long it ran; None while it runs, or if it died.
        error: why it failed.
    """

    run: str
    pipeline: str
    state: str
    started: float
    seconds: float | None
    error: str | None

    def __str__(self) -> str:
        took = "" if self.seconds is None else f"{self.seconds:.1f} s"
        lines = (self.error or "").splitlines()
        error = f"  {lines[0][:120]}" if lines else ""
        return f"{self.run}  {self.state:<11}  {took:>10}  {self.pipeline}{error}".rstrip()


def list_runs(root: str | Path | None = None) -> list[RunEntry]:
    """List the runs of a folder of journals, newest first.

    Args:
        root: folder of journals; None is `default_root`.

    Returns:
        An entry for each run; none if the folder doesn't exist.
    """
    fs, base = open_root(root)
    entries = [_entry(fs, folder) for folder in _folders(fs, base)]
    return [entry for entry in entries if entry is not None]


def find_run(run: str, root: str | Path | None = None) -> RunEntry:
    """Tell of one run what `list_runs` tells of all.

    Args:
        run: its id.
        root: folder of journals; None is `default_root`.

    Raises:
        SourceNotFoundError: there is no such run.
    """
    fs, base = open_root(root)
    entry = _entry(fs, f"{base}/{run}")
    if entry is None:
        raise _no_run(run, fs, base)
    return entry


def _entry(fs: fsspec.AbstractFileSystem, folder: str) -> RunEntry | None:
    names = names_in(fs, folder)
    segments = _segments(names)
    if not segments:
        return None
    first = next(_records(fs, folder, segments[:1]), None)
    if first is None or first[0] != "started":
        return None
    header, last = first[1], _last(fs, folder, segments)
    state = STATES.get(last[0])
    end = last[1] if state else {}
    seconds = end["time"] - header["time"] if state else None
    if state is None:
        driver = holder(fs, folder, names)
        alive = _lives(header) if driver is None else driver.alive
        state = "running" if alive else "died"
    return RunEntry(
        header["run"], header.get("pipeline") or "", state, header["time"], seconds, end.get("error")
    )


def _last(fs: fsspec.AbstractFileSystem, folder: str, segments: list[str]) -> list[Any]:
    for name in reversed(segments):
        records = list(_records(fs, folder, [name]))
        if records:
            return records[-1]
    return ["started", {}]


def _this_driver() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "time": time.time(),
        "host": platform.node(),
        "pid": process.pid,
        "pid_started": process.create_time(),
    }


def _lives(header: dict[str, Any]) -> bool:
    if header["host"] != platform.node():
        return True
    try:
        process = psutil.Process(header["pid"])
        return (
            abs(process.create_time() - header["pid_started"]) < 2
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def _epoch_of(record: list[Any]) -> int:
    """The epoch of the driver that a record begins; -1 if it begins none."""
    if record[0] == "resumed":
        return int(record[1]["epoch"])
    return 0 if record[0] == "started" else -1


def _folders(fs: fsspec.AbstractFileSystem, base: str) -> list[str]:
    """Folders of runs, newest first."""
    if not fs.exists(base):
        return []
    found = [entry["name"] for entry in fs.ls(base, detail=True) if entry["type"] == "directory"]
    return sorted(found, reverse=True)


def _segments(names: Iterable[str]) -> list[str]:
    return sorted((name for name in names if _SEGMENT.fullmatch(name)), key=_number)


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def _records(fs: fsspec.AbstractFileSystem, folder: str, names: Iterable[str]) -> Iterator[list[Any]]:
    for name in names:
        data = fs.cat_file(f"{folder}/{name}")
        try:
            records = json.loads(data)
        except ValueError as error:
            if not data.endswith(
                b"\n"
            ):  # cut short, so it took no effect; only where there are no hard links
                continue
            raise CorruptFileError(f"{folder}/{name}, a segment of a journal, is damaged: {error}") from error
        if isinstance(records, list):  # else somebody else's file
            yield from (record for record in records if record[0] != _TOKEN)


def _no_run(run: str, fs: fsspec.AbstractFileSystem, base: str) -> SourceNotFoundError:
    known = [path.rpartition("/")[2] for path in _folders(fs, base)]
    return SourceNotFoundError(
        f"there is no run {run!r} under {base}; `headwater runs` lists them. {did_you_mean(run, known)}"
    )
