"""Saved objectives: Headwater's own by name and arguments, which anybody can read; others pickled."""

from __future__ import annotations

import importlib
import inspect
import pickle
from typing import Any

import numpy as np

from ...errors import CorruptFileError, HeadwaterError, SerializationError
from ...lineage.keys import canonical
from .. import pickling
from .objective import Objective

_HOME = __name__.rpartition(".")[0]
#: arguments whose name is a method's, so that the attribute has another
_ELSEWHERE = {"init": "initial"}


def describe_objective(objective: Objective) -> tuple[dict[str, Any], bytes | None]:
    """Describe an objective so that `restore_objective` makes an equal one.

    Args:
        objective: Headwater's own or a user's.

    Returns:
        A dict that JSON can hold: for Headwater's own objectives name, module and arguments. For all others, and
        those whose arguments JSON can't hold, it is for reading only, and the second value is the pickled objective.

    Raises:
        SerializationError: it can't be pickled.

    Example:
        >>> from headwater.ops.objectives.kmeans import KMeans
        >>> record, pickled = describe_objective(KMeans(3))
        >>> record["name"], record["arguments"]["k"], pickled
        ('KMeans', 3, None)
    """
    kind = type(objective)
    record: dict[str, Any] = {"name": kind.__name__, "text": repr(objective)}
    if kind.__module__.startswith(f"{_HOME}."):
        try:
            module = kind.__module__.removeprefix(f"{_HOME}.")
            record |= {"module": module, "arguments": _arguments(objective)}
            if canonical(restore_objective(record).parameters()) == canonical(objective.parameters()):
                return record, None
        except (HeadwaterError, TypeError):
            pass
        record = {"name": record["name"], "text": record["text"]}
    try:
        return record, pickling.dumps(objective)
    except Exception as error:
        raise SerializationError(
            f"the objective {objective!r} can't be saved: {type(error).__name__}: {error}. "
            "Keep only plain values in it."
        ) from error


def restore_objective(record: dict[str, Any], pickled: bytes | None = None) -> Objective:
    """Make an objective again.

    Args:
        record: what `describe_objective` gave.
        pickled: the same; unpickling runs code, so it has to be trusted.

    Raises:
        CorruptFileError: there is no such objective here, or it doesn't take such arguments.
    """
    try:
        if pickled is not None:
            objective = pickle.loads(pickled)
        else:
            module = importlib.import_module(f"{_HOME}.{record['module']}")
            kind = getattr(module, record["name"])
            if not (isinstance(kind, type) and issubclass(kind, Objective)):
                raise TypeError(f"{record['name']} is no objective")
            objective = kind(**{name: _decode(value) for name, value in record["arguments"].items()})
    except Exception as error:
        raise CorruptFileError(
            f"the objective {record.get('text', record)} can't be made here ({type(error).__name__}: {error}). It may "
            "be of another version, or of a package that isn't installed."
        ) from error
    if not isinstance(objective, Objective):
        raise CorruptFileError(f"what was saved as an objective is a {type(objective).__name__}.")
    return objective


def _arguments(objective: Objective) -> dict[str, Any]:
    """The arguments it was made with, as far as its attributes of these names tell."""
    parameters = inspect.signature(type(objective)).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    held = vars(objective)
    kept = {name: name if name in held else _ELSEWHERE.get(name, name) for name in names}
    return {name: _encode(held[attribute]) for name, attribute in kept.items() if attribute in held}


def _encode(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"$array": value.tolist(), "dtype": value.dtype.str, "shape": list(value.shape)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) and key[:1] != "$" for key in value):
        return {key: _encode(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$array" in value:
        return np.array(value["$array"], np.dtype(value["dtype"])).reshape(value["shape"])
    if "$tuple" in value:
        return tuple(_decode(item) for item in value["$tuple"])
    return {key: _decode(item) for key, item in value.items()}
