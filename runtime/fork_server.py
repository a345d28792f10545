"""Fork server: a process that has imported what workers need, and from which a local cluster's workers are forked.

A worker started from nothing takes 0.8 s of processor time to import, four on two cores 1.6 s and more. Forked ones are
there at once, and share the memory of what was imported. The server imports while this process imports Dask.
It is `multiprocessing`'s own, has no threads, and ends with this process. Where there is none (not on Linux; or the
program has set up another one for itself), workers are started as ever.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from typing import Any

#: what the server imports
PRELOAD = "headwater.runtime.workers.preload"
#: environment of its process, where nothing else is set: what Dask's nannies would set, too late for a fork
_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "6640",
}
#: what `multiprocessing` preloads if nobody says anything else
_DEFAULT = ["__main__"]
#: process id of the server that was started here
_started: int | None = None


def warm_up() -> bool:
    """Start the server, unless it runs; it goes on importing when this returns.

    Returns:
        Whether workers can be forked.
    """
    global _started
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if not sys.platform.startswith("linux") or server._forkserver_pid not in (None, _started):
        return False
    if _started is None and server._preload_modules != _DEFAULT:
        return False  # the program has plans of its own
    multiprocessing.set_forkserver_preload([PRELOAD])
    missing = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        forkserver.ensure_running()
    except OSError:
        return False
    finally:
        for name in missing:
            del os.environ[name]
    _started = server._forkserver_pid
    return True
