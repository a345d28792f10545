"""Claim: processes of a machine that nobody has bound choose devices by locks, so that they spread over them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

#: open while the process lives; the system lets go of its locks when it ends, however that happens
_held: list[int] = []
#: processes that may have the same device
_MOST = 64


def claim(devices: Sequence[str], folder: Path | None = None) -> tuple[str, int]:
    """Take the device that the fewest processes of this user have.

    Args:
        devices: to choose from, at least one.
        folder: of the locks; None is one under the temporary folder.

    Returns:
        The device, and how many have it already.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [claim(["0", "1"], Path(folder)) for _ in range(3)]
        [('0', 0), ('1', 0), ('0', 1)]
    """
    with suppress(ImportError, OSError):
        import fcntl

        where = folder or Path(tempfile.gettempdir()) / f"headwater-devices-{os.getuid()}"
        where.mkdir(mode=0o700, exist_ok=True)
        for before in range(_MOST):
            for device in devices:
                name = device.replace("/", "-")
                file = os.open(where / f"{name}.{before}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(file)
                    continue
                _held.append(file)
                return device, before
    return devices[os.getpid() % len(devices)], 0
