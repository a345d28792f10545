"""Spawn: let worker processes start without running the user's main script again.

Dask starts worker processes by `multiprocessing` in its "spawn" way, which imports the parent's main
module into each child. A script that opens a session at its top level would so open sessions without
end, and a script on standard input can't be imported at all. Workers don't need that module: what a
script defines travels by value.
"""

from __future__ import annotations

from multiprocessing import spawn
from typing import Any

#: the name that `distributed.nanny` gives to the processes it starts
_NANNY_PROCESS = "Dask Worker process (from Nanny)"
_MAIN_MODULE = ("init_main_from_name", "init_main_from_path")

_prepare = spawn.get_preparation_data


def keep_main_out_of_workers() -> None:
    """From now on, processes that Dask's nannies start in this process don't import the main module.

    Other uses of `multiprocessing` are not affected.
    """
    spawn.get_preparation_data = _preparation_data


def _preparation_data(name: str) -> dict[str, Any]:
    data = _prepare(name)
    if name == _NANNY_PROCESS:
        for key in _MAIN_MODULE:
            data.pop(key, None)
    return data
