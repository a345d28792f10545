"""Transport: which way a gang's arrays go: over NCCL if each member has a device of its own, else through the host."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ops.backend import array_namespace, to_host
from ...ops.device.memory import staged
from ...ops.device.ordered_sum import ordered_sum
from ..collectives.device_link import LinkError
from ..collectives.group import Group
from ..collectives.nccl import NcclGroup
from ..devices.worker_device import describe_device

#: either kind of group
AnyGroup = Group | NcclGroup

#: why this process does without NCCL from now on, once that has failed
_given_up: list[str] = []


def choose_transport(group: Group, timeout: float) -> AnyGroup:
    """Choose how the arrays of a gang go, as all its members do at once; for a stage that was placed on devices.

    Args:
        group: just formed.
        timeout: seconds to open connections in.

    Returns:
        A group whose arrays are the device's, if this process's backend is CuPy for all members, each has a device of
        its own, and NCCL is there in one version; else the same group, to which arrays go by way of the host.

    Raises:
        GroupBrokenError: a member is gone, or NCCL failed; the next generation does without it.
    """
    offers = [json.loads(note) for note in group.barrier(json.dumps(_offer(group)).encode())]
    if not agree(offers):
        return group
    try:
        return NcclGroup(group, array_namespace(), ordered_sum, timeout)
    except LinkError as error:
        _given_up.append(str(error))
        raise


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
    }


def _nccl_version() -> int:
    """NCCL's version; 0 if CuPy can't use it here."""
    try:
        nccl: Any = importlib.import_module("cupy.cuda.nccl")
        return int(nccl.get_version()) if nccl.available else 0
    except Exception:
        return 0
