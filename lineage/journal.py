"""Journal: what a run has decided, written before it takes effect, as small files written once.

A journal is a folder ``ROOT/RUN/`` of segments ``000000.json``, ``000001.json``, ... on any fsspec URL.
A segment is a JSON list of records; a record is a list whose first item names its kind:

    ["started", {run, pipeline, time, host, pid, pid_started, cluster}]
    ["plan", [[stage, key, label, partitions, [[source, dependency, start, stop], ...], has a sink],
             ...], {output: stage}]
    ["boundaries", stage, base64 of an Arrow stream]      ["stage", stage, rows]
    ["task", stage, task, attempt, node, [[partition, rows, bytes, fingerprint], ...], seconds]
    ["failed", stage, task, attempt, kind, error]         ["worker lost", address, node, node lost too]
    ["rerun", stage, partitions]                          ["committing", output] ["committed", output]
    ["finished" | "stopped" | "failed run" | "interrupted", {time, error, report}]

One turn of the driver's loop is one segment (group commit), so a run costs a few KB.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import psutil
from fsspec.implementations.local import LocalFileSystem

from ..errors import ParameterError, SourceNotFoundError, did_you_mean

#: kinds of a run's last record, and the state each leaves it in
STATES = {
    "finished": "finished",
    "stopped": "stopped",
    "failed run": "failed",
    "interrupted": "interrupted",
}

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def default_root() -> str:
    """Return where journals lie: ``$HEADWATER_HOME/runs``, or ``~/.local/state/headwater/runs``."""
    home = os.environ.get("HEADWATER_HOME") or Path("~/.local/state/headwater").expanduser()
    return str(Path(home) / "runs") if "://" not in str(home) else f"{home}/runs"


def new_run_id() -> str:
    """Make a run's id, which sorts by time.

    Example:
        >>> len(new_run_id())
        20
    """
    tail = "".join(secrets.choice(_ALPHABET) for _ in range(4))
    return f"{datetime.now():%Y%m%d-%H%M%S}-{tail}"


class Journal:
    """The journal of one run, open for writing.

    Args:
        root: folder of journals, a path or any fsspec URL; None is `default_root`.
        run: the run's id; None makes a new one.

    Attributes:
        run: the run's id.
        bytes: written so far.

    Example:
        >>> journal = Journal(getfixture("tmp_path"), "20261123-153012-x7k2")
        >>> journal.append([["stage", 0, 7]])
        >>> list(read(journal.run, getfixture("tmp_path")))
        [['stage', 0, 7]]
    """

    def __init__(self, root: str | Path | None = None, run: str | None = None):
        self.run = run or new_run_id()
        self.bytes = 0
        self._fs, base = _open_root(root)
        self._folder = f"{base}/{self.run}"
        self._fs.makedirs(self._folder, exist_ok=True)
        self._next = len(_segments(self._fs, self._folder))

    @classmethod
    def create(cls, root: str | Path | None = None, header: dict[str, Any] | None = None) -> Journal:
        """Begin the journal of a new run.

        Args:
            root: folder of journals; None is `default_root`.
            header: what to say of the run: pipeline, versions, stages, options.

        Returns:
            The journal, its first record written.
        """
        journal = cls(root)
        journal.start(header or {})
        return journal

    @classmethod
    def open(cls, run: str, root: str | Path | None = None) -> Journal:
        """Go on with the journal of a run that exists.

        Raises:
            SourceNotFoundError: there is no such run.
        """
        fs, base = _open_root(root)
        if not fs.exists(f"{base}/{run}"):
            raise _no_run(run, fs, base)
        return cls(root, run)

    def start(self, header: dict[str, Any]) -> None:
        """Write the first record: what runs, since when, in which process."""
        process = psutil.Process()
        who = {
            "run": self.run,
            "time": time.time(),
            "host": platform.node(),
            "pid": process.pid,
            "pid_started": process.create_time(),
        }
        self.append([["started", {**who, **header}]])

    def append(self, records: Sequence[Sequence[Any]]) -> None:
        """Write records, if there are any, as one segment; they are safe when this returns."""
        if not records:
            return
        data = json.dumps(list(records), separators=(",", ":"), default=str).encode()
        _write_once(self._fs, f"{self._folder}/{self._next:06d}.json", data)
        self._next += 1
        self.bytes += len(data)

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


def read(run: str, root: str | Path | None = None) -> Iterator[list[Any]]:
    """Yield a run's records in the order they were written.

    Args:
        run: its id.
        root: folder of journals; None is `default_root`.

    Raises:
        SourceNotFoundError: there is no such run.
    """
    fs, base = _open_root(root)
    segments = _segments(fs, f"{base}/{run}")
    if not segments:
        raise _no_run(run, fs, base)
    for path in segments:
        yield from json.loads(fs.cat_file(path))


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
    fs, base = _open_root(root)
    entries = [_entry(fs, folder) for folder in _folders(fs, base)]
    return [entry for entry in entries if entry is not None]


def _entry(fs: fsspec.AbstractFileSystem, folder: str) -> RunEntry | None:
    segments = _segments(fs, folder)
    if not segments:
        return None
    first, last = (json.loads(fs.cat_file(segment)) for segment in (segments[0], segments[-1]))
    if not isinstance(first, list):  # somebody else's folder of JSON files
        return None
    first, last = first[0], last[-1]
    if first[0] != "started":
        return None
    header = first[1]
    state, end = STATES.get(last[0]), last[1] if isinstance(last[-1], dict) else {}
    seconds = end["time"] - header["time"] if state else None
    return RunEntry(
        header["run"],
        header.get("pipeline") or "",
        state or ("running" if _lives(header) else "died"),
        header["time"],
        seconds,
        end.get("error") if state else None,
    )


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


def _open_root(root: str | Path | None) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        fs, base = fsspec.core.url_to_fs(str(default_root() if root is None else root))
    except (ValueError, ImportError) as error:
        raise ParameterError(f"journal {str(root)!r}: {error}. Give a folder or an fsspec URL.") from error
    return fs, base.rstrip("/")


def _folders(fs: fsspec.AbstractFileSystem, base: str) -> list[str]:
    """Folders of runs, newest first."""
    if not fs.exists(base):
        return []
    found = [entry["name"] for entry in fs.ls(base, detail=True) if entry["type"] == "directory"]
    return sorted(found, reverse=True)


def _segments(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    try:
        return sorted(path for path in fs.ls(folder, detail=False) if path.endswith(".json"))
    except FileNotFoundError:
        return []


def _write_once(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Make a file appear whole or not at all."""
    if isinstance(fs, LocalFileSystem):
        draft = f"{path}.{os.getpid()}.tmp"
        with open(draft, "wb") as file:
            file.write(data)
        os.replace(draft, path)
    else:
        fs.pipe_file(path, data)


def _no_run(run: str, fs: fsspec.AbstractFileSystem, base: str) -> SourceNotFoundError:
    known = [path.rpartition("/")[2] for path in _folders(fs, base)]
    return SourceNotFoundError(
        f"there is no run {run!r} under {base}; `headwater runs` lists them. {did_you_mean(run, known)}"
    )
