"""What CuPy has: names and parameters, as `api.txt` lists them. A test compares it with CuPy, where that is installed.

A line is a name, a kind and parameters: "f" is a function or method, "u" a ufunc, "-" anything else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("api.txt")
#: what any ufunc takes by name
_UFUNC = ("out", "dtype", "casting")


def _read() -> dict[str, tuple[str, ...]]:
    lines = (line.split() for line in LIST.read_text().splitlines() if not line.startswith("#"))
    return {name: tuple(rest) for name, *rest in lines}


#: by name: the kind, and parameters
API = _read()


def check_call(name: str, given: Collection[Any], named: Mapping[str, Any]) -> None:
    """Refuse what CuPy's function of this name, or ``ndarray.name``, doesn't take."""
    kind, *parameters = API[name]
    if kind == "u":
        parameters = [f"x{number}" for number in range(len(given))] + list(_UFUNC)
    if any(parameter.startswith("*") and parameter != "*" for parameter in parameters):
        parameters = [*parameters, *named, *map(str, range(len(given)))]
    positional = parameters[: parameters.index("*")] if "*" in parameters else parameters
    unknown = [key for key in named if key not in parameters]
    if unknown or len(given) > len(positional):
        what = f"an argument {unknown[0]!r}" if unknown else f"{len(given)} arguments"
        raise TypeError(f"cupy.{name} takes no {what}")
