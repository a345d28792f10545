"""Marks on kept blocks: which runs read them, and which sessions want them kept; void once those are gone.

kept/KEY/users/RUN      void once the run has no folder on this node
kept/KEY/pins/NAME      an owner's, void once its process is dead; or one without an owner, never void
"""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path

from ...lineage.owner import Owner
from .node_store import FOREIGN_KEEP_SECONDS, NodeStore


def mark_user(folder: Path, run: str) -> None:
    """Note that a run reads the blocks of a key's folder."""
    _write(folder / "users", run, "")


def unmark_user(folder: Path, run: str) -> None:
    """Note that a run doesn't read them any more."""
    (folder / "users" / run).unlink(missing_ok=True)


def mark_pin(folder: Path, owner: Owner | None) -> None:
    """Pin a key for the lifetime of a process, or, without an owner, until it is unpinned."""
    _write(folder / "pins", _name(owner), json.dumps(owner.record()) if owner else "")


def remove_pins(folder: Path, owner: Owner | None) -> None:
    """Take an owner's pin off a key, or, without an owner, all pins."""
    for mark in folder.glob("pins/*"):
        if owner is None or mark.name == _name(owner):
            mark.unlink(missing_ok=True)


def is_pinned(folder: Path) -> bool:
    """Whether a key has a pin that hasn't been found void."""
    return any(folder.glob("pins/*"))


def is_wanted(folder: Path) -> bool:
    """Whether a key has a pin that isn't void."""
    return any(not _is_void(mark) for mark in folder.glob("pins/*"))


def in_use(folder: Path, store: NodeStore) -> bool:
    """Whether a run that is still here reads a key's blocks."""
    return any(store.has_run(mark.name) for mark in folder.glob("users/*"))


def purge_users(folder: Path, store: NodeStore) -> None:
    """Remove the marks of runs that are over."""
    for mark in folder.glob("users/*"):
        if not store.has_run(mark.name):
            mark.unlink(missing_ok=True)


def purge_marks(folder: Path, store: NodeStore) -> None:
    """Remove a key's void marks."""
    purge_users(folder, store)
    for mark in folder.glob("pins/*"):
        if _is_void(mark):
            mark.unlink(missing_ok=True)


def _is_void(pin: Path) -> bool:
    """Whether the process that a pin belongs to is dead, or, if that can't be known, likely so."""
    try:
        text, made = pin.read_text(), pin.stat().st_mtime
        alive = Owner(**json.loads(text)).is_alive() if text else True
    except (FileNotFoundError, ValueError, TypeError):  # taken off since; or torn
        return True
    return time.time() - made >= FOREIGN_KEEP_SECONDS if alive is None else not alive


def _name(owner: Owner | None) -> str:
    if owner is None:
        return "until-unpinned"
    return f"{owner.pid}-{zlib.crc32(json.dumps(owner.record()).encode()):08x}"


def _write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / name).write_text(text)
