"""Names of a package that are imported from their modules when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Iterable[str]], modules: Mapping[str, str] = {}
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package whose names are imported at first use (PEP 562).

    Args:
        package: its ``__name__``.
        homes: relative name of a module to the names that it gives; ``"shown=name"`` is shown under another one.
        modules: a name to the relative name of the module that it is.

    Returns:
        The two functions, to be assigned in the package's ``__init__``.
    """
    found = {entry.split("=")[0]: (home, entry.split("=")[-1]) for home in homes for entry in homes[home]}
    names = sorted({*found, *modules})

    def get(name: str) -> Any:
        if name in found:
            home, inside = found[name]
            value = getattr(import_module(home, package), inside)
        elif name in modules:
            value = import_module(modules[name], package)
        else:
            from .errors import did_you_mean

            hint = "" if name.startswith("_") else f" {did_you_mean(name, names)}"
            raise AttributeError(f"module {package!r} has no attribute {name!r}.{hint}")
        setattr(sys.modules[package], name, value)
        return value

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, listing
