"""Private scratch: folders that belong to one process, and that later ones remove if it was killed."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from ..lineage.owner import Owner, this_process

_PREFIX = "headwater-"
_OWNER = "private.json"


def make_private_scratch() -> Path:
    """Make a folder of this process under the temporary one, once what dead processes left there is removed.

    Returns:
        The folder; the caller removes it.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    (folder / _OWNER).write_text(json.dumps(this_process().record()))
    return folder


def _remove_abandoned(parent: Path) -> None:
    for record in parent.glob(f"{_PREFIX}*/{_OWNER}"):
        with suppress(OSError, ValueError, TypeError):  # another user's, or being removed
            if Owner(**json.loads(record.read_text())).is_alive() is False:
                shutil.rmtree(record.parent, ignore_errors=True)
