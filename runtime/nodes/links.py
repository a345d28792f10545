"""Links: a block that is kept has two names on disk and takes room once, until both are gone."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .ledger import Balance


def remove_name(path: Path, balance: Balance, trash: Path | None = None) -> int:
    """Take a published file's name away, and count its bytes as free if it has no other.

    Args:
        path: of the file; nothing happens if it is gone.
        balance: of the locked ledger.
        trash: a folder to move the file to instead of deleting it, which takes long for large ones.

    Returns:
        The bytes set free.
    """
    try:
        stat = path.stat()
        if stat.st_nlink > 1 or trash is None:
            path.unlink()
        else:
            os.rename(path, trash / uuid.uuid4().hex)
    except FileNotFoundError:
        return 0
    freed = stat.st_size if stat.st_nlink == 1 else 0
    balance.commit(-freed)
    return freed


def bytes_of(paths: Iterable[Path | str]) -> int:
    """Sum the sizes of files, each counted once whatever its names; those that are gone count nothing."""
    sizes: dict[int, int] = {}
    for path in paths:
        with suppress(FileNotFoundError):
            stat = os.stat(path)
            sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values())
