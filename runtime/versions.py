"""Versions: what runs here and on the cluster, and whether it fits together."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..errors import ClusterError, VersionMismatchError

if TYPE_CHECKING:
    from distributed import Client

#: seconds for the scheduler, and for a worker, to tell its versions
_SCHEDULER_SECONDS = 30.0
_WORKER_SECONDS = 5.0
#: package to how many parts of its version must agree between driver and workers
PACKAGES = {"headwater": 3, "dask": 3, "distributed": 3, "cloudpickle": 1, "pyarrow": 2, "numpy": 2}
#: what the scheduler needs: it never sees Headwater's objects
SCHEDULER_PACKAGES = {"dask": 3, "distributed": 3}


@lru_cache(maxsize=1)
def local_versions() -> Mapping[str, str]:
    """Return the versions of Python and of the packages that results depend on, in this process.

    Example:
        >>> sorted(local_versions())
        ['cloudpickle', 'dask', 'distributed', 'headwater', 'numpy', 'pyarrow', 'python']
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def check_versions(client: Client) -> None:
    """Compare the versions of the scheduler and all workers with this process.

    Workers that don't answer in time are left out: they may hang, and get no tasks either.

    Raises:
        VersionMismatchError: some differ; lists each process and package.
        ClusterError: the cluster doesn't answer.
    """
    try:
        answer = client.sync(_collect, client)
    except (OSError, TimeoutError) as error:
        raise ClusterError(f"the cluster doesn't tell its versions: {error}") from error
    problems = mismatches(answer)
    if problems:
        raise VersionMismatchError(
            "versions differ from this process:\n  "
            + "\n  ".join(problems)
            + "\nInstall the same ones everywhere."
        )


async def _collect(client: Client) -> dict[str, Any]:
    """As `Client.get_versions`, which would wait for ever for a worker that hangs."""
    from distributed.versions import get_versions

    packages = ["headwater", "pyarrow"]
    scheduler = client.scheduler
    asked = asyncio.wait_for(scheduler.versions(packages=packages), _SCHEDULER_SECONDS)
    known = await asyncio.wait_for(scheduler.identity(n_workers=-1), _SCHEDULER_SECONDS)

    async def ask(worker: str) -> dict[str, Any]:
        question = {"op": "versions", "packages": packages}
        call = scheduler.broadcast(msg=question, workers=[worker], on_error="ignore")
        try:
            return await asyncio.wait_for(call, _WORKER_SECONDS)
        except TimeoutError:
            return {}

    answers = await asyncio.gather(*(ask(worker) for worker in known["workers"]))
    workers = {name: info for answer in answers for name, info in answer.items()}
    if known["workers"] and not workers:
        raise TimeoutError(f"none of {len(answers)} workers answers within {_WORKER_SECONDS:g} seconds")
    return {"client": get_versions(packages=packages), "scheduler": await asked, "workers": workers}


def mismatches(answer: Mapping[str, Any]) -> list[str]:
    """List what differs in the versions that `distributed.Client.get_versions` collected.

    Args:
        answer: versions of "client", "scheduler" and each of "workers".

    Returns:
        A line for each process that doesn't fit.
    """
    mine = _flat(answer["client"])
    lines = []
    if answer.get("scheduler"):
        lines += _compare("scheduler", mine, _flat(answer["scheduler"]), SCHEDULER_PACKAGES)
    for address, info in sorted(answer["workers"].items()):
        theirs = _flat(info)
        if theirs.get("headwater") is None:
            lines.append(
                f"worker {address}: has no headwater: install headwater=={mine['headwater']} on the workers"
            )
        else:
            lines += _compare(f"worker {address}", mine, theirs, PACKAGES)
    return lines


def _compare(
    who: str, mine: Mapping[str, str | None], theirs: Mapping[str, str | None], packages: Mapping[str, int]
) -> list[str]:
    found = [
        f"{name} {theirs.get(name) or 'missing'} (here {mine.get(name)})"
        for name, parts in {"python": 2, **packages}.items()
        if _head(mine.get(name), parts) != _head(theirs.get(name), parts)
    ]
    return [f"{who}: {', '.join(found)}"] if found else []


def _flat(info: Mapping[str, Any]) -> dict[str, str | None]:
    return {**info["packages"], "python": info["host"]["python"]}


def _head(text: str | None, parts: int) -> tuple[str, ...] | None:
    return None if text is None else tuple(text.split(".")[:parts])
