"""Transport: which way a gang's arrays go: over NCCL if each member has a device of its own, by CUDA IPC if they are
processes of one machine that share devices, else through the host.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...lineage.owner import this_process
from ...ops.backend import array_namespace, to_host
from ...ops.device.arrays.ordered_sum import ordered_sum
from ...ops.device.crossing import staged
from ...ops.device.windows import Windows
from ..collectives.device_link import LinkError
from ..collectives.group import Group
from ..collectives.nccl import IpcGroup, NcclGroup
from ..devices.worker_device import describe_device

#: either kind of group
AnyGroup = Group | NcclGroup

#: why this process does without NCCL, or without IPC, from now on, once that has failed
_given_up: list[str] = []
_without_ipc: list[str] = []


def choose_transport(group: Group, timeout: float) -> AnyGroup:
    """Choose how the arrays of a gang go, as all its members do at once; for a stage that was placed on devices.

    Args:
        group: just formed.
        timeout: seconds to open connections in.

    Returns:
        A group whose arrays are the device's, if this process's backend is CuPy for all members, and each has a device
        of its own and NCCL is there in one version, or all are on one machine; else the same group, to which arrays go
        by way of the host.

    Raises:
        GroupBrokenError: a member is gone, or NCCL or CUDA failed; the next generation does without it.
    """
    offers = [json.loads(note) for note in group.barrier(json.dumps(_offer(group)).encode())]
    xp = array_namespace()
    if agree(offers):
        with _given_up_if_it_fails(_given_up):
            return NcclGroup(group, xp, ordered_sum, timeout)
    if are_neighbours(offers):
        with _given_up_if_it_fails(_without_ipc):
            return IpcGroup(group, xp, ordered_sum, Windows(xp), timeout)
    return group


def agree(offers: Sequence[dict[str, Any]]) -> bool:
    """Whether members can exchange between their devices, by what each of them has.

    Args:
        offers: of each member: "device", a name among all devices, "" without one; "nccl", its version, 0 without it;
            "private", whether its connections are to be encrypted, which NCCL's aren't.

    Example:
        >>> one, other = ({"device": name, "nccl": 22000, "private": False} for name in ("a/0", "a/1"))
        >>> agree([one, other]), agree([one, one]), agree([{**one, "nccl": 0}])
        (True, False, True)
    """
    devices = [offer["device"] for offer in offers]
    if not all(devices):
        return False
    alone = len(offers) == 1
    distinct = len(set(devices)) == len(devices)
    versions = {offer["nccl"] for offer in offers}
    return alone or (
        distinct and len(versions) == 1 and 0 not in versions and not any(o["private"] for o in offers)
    )


def are_neighbours(offers: Sequence[dict[str, Any]]) -> bool:
    """Whether members can look into each other's device memory, by what each of them has.

    Args:
        offers: of each member: "device" as for `agree`; "machine", that of its process, "" if CUDA has refused; "pid".

    Example:
        >>> one, other = ({"device": "a/0", "machine": "a", "pid": pid} for pid in (1, 2))
        >>> are_neighbours([one, other]), are_neighbours([one, one]), are_neighbours([one, {**other, "machine": "b"}])
        (True, False, False)
    """
    machines = {offer["machine"] for offer in offers}
    pids = {offer["pid"] for offer in offers}
    there = all(offer["device"] for offer in offers) and "" not in machines
    return there and len(machines) == 1 and len(pids) == len(offers) > 1


def for_group(group: AnyGroup, array: Any) -> Any:
    """Return an array as a group takes it: flat, without gaps, on the device or on the host.

    Args:
        group: of either kind.
        array: of either namespace, or a number.
    """
    if group.on_device:
        xp = array_namespace()
        return xp.ascontiguousarray(staged(xp, np.asarray(array) if np.isscalar(array) else array)).reshape(
            -1
        )
    return np.ascontiguousarray(to_host(array)).reshape(-1)


def _offer(group: Group) -> dict[str, Any]:
    device = None if array_namespace() is np else describe_device()[0]
    return {
        "device": "" if device is None else device.identity,
        "nccl": 0 if device is None or _given_up else _nccl_version(),
        "private": group.secured,
        "machine": "" if device is None or _without_ipc else this_process().machine,
        "pid": os.getpid(),
    }


@contextmanager
def _given_up_if_it_fails(reasons: list[str]) -> Iterator[None]:
    try:
        yield
    except LinkError as error:
        reasons.append(str(error))
        raise


def _nccl_version() -> int:
    """NCCL's version; 0 if CuPy can't use it here."""
    try:
        nccl: Any = importlib.import_module("cupy.cuda.nccl")
        return int(nccl.get_version()) if nccl.available else 0
    except Exception:
        return 0
