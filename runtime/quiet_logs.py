"""Quiet logs: what Dask's own processes tell each other isn't printed while a local cluster of ours lives.

Dask silences its loggers for each cluster, and gives them back the level that this cluster found. So of clusters that
overlap, the first to close makes the others loud. Here clusters are counted, and the last one gives the levels back.
"""

from __future__ import annotations

import logging
import threading

#: loggers whose handlers are turned down
LOGGERS = ("distributed", "bokeh")
#: the least that is printed
LEVEL = logging.CRITICAL

_lock = threading.Lock()
_clusters = 0
_found: list[tuple[logging.Handler, int]] = []


def be_quiet() -> None:
    """Turn Dask's loggers down for one more cluster; call before Dask does it for this cluster itself."""
    global _clusters
    with _lock:
        _clusters += 1
        known = {id(handler) for handler, _ in _found}
        for name in LOGGERS:
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler) and id(handler) not in known:
                    _found.append((handler, handler.level))
                    handler.setLevel(LEVEL)


def be_as_before() -> None:
    """Count one cluster less; after the last one, the handlers have the levels that they had before the first."""
    global _clusters
    with _lock:
        _clusters -= 1
        while not _clusters and _found:
            handler, level = _found.pop()
            handler.setLevel(level)
