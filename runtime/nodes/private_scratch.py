"""Private scratch: folders that belong to one process, and that later ones remove if it was killed.

A folder in which a killed process left a run stays for a day, so that the run can be resumed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ...lineage.owner import Owner, this_process
from .node_store import default_scratch

_PREFIX = "headwater-"
_OWNER = "private.json"
#: seconds that a run of a dead driver is kept, so that it can be resumed
KEEP_SECONDS = 86_400.0


def make_private_scratch() -> Path:
    """Make a folder of this process under the temporary one, once what dead processes left there is removed.

    Returns:
        The folder; the caller removes it.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    _own(folder)
    return folder


def lasting_scratch() -> Path:
    """Return the scratch folder in which local sessions of a user find what earlier ones kept.

    ``$HEADWATER_SCRATCH``, or ``$HEADWATER_HOME/scratch``, or a user's own under the temporary folder.
    """
    home = os.environ.get("HEADWATER_HOME")
    if home and "://" not in home and not os.environ.get("HEADWATER_SCRATCH"):
        return Path(home).absolute() / "scratch"
    return default_scratch()


def adopt_private_scratch(folder: Path) -> Path | None:
    """Take over a private folder whose process is dead, with the runs in it.

    Returns:
        The folder, which the caller removes from now on; None if it is nobody's private folder, or its
        process lives.
    """
    with suppress(OSError, ValueError, TypeError):
        if _owner_of(folder).is_alive() is False:
            _own(folder)
            return folder
    return None


def _remove_abandoned(parent: Path) -> None:
    for record in parent.glob(f"{_PREFIX}*/{_OWNER}"):
        with suppress(OSError, ValueError, TypeError):  # another user's, or being removed
            folder = record.parent
            if _owner_of(folder).is_alive() is False and not _has_recent_run(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _has_recent_run(folder: Path) -> bool:
    used = (record.stat().st_mtime for record in folder.glob("runs/*/owner.json"))
    return any(time.time() - when < KEEP_SECONDS for when in used)


def _own(folder: Path) -> None:
    (folder / _OWNER).write_text(json.dumps(this_process().record()))


def _owner_of(folder: Path) -> Owner:
    return Owner(**json.loads((folder / _OWNER).read_text()))
