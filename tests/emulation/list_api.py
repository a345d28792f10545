"""Prints what CuPy has, as ``cupy/api.txt`` holds it; run where CuPy is installed, with or without a device.

python tests/emulation/list_api.py > tests/emulation/cupy/api.txt
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

#: parameters that are there by place alone
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parameters(function: Any) -> list[str]:
    """The names that a function takes; "*" is before those that are taken by name alone, and begins a list of any."""
    try:
        found: list[str] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind == parameter.KEYWORD_ONLY and not any(known[0] == "*" for known in found):
                found.append("*")
            stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
            found.append(stars + name)
        return found
    except (ValueError, TypeError):  # of Cython: the first line of the docstring has it
        text = re.match(r"[\w.]+\((.*?)\)(\s*->.*)?$", (function.__doc__ or "").split("\n")[0])
        if text is None:
            return ["*unknown"]
        parts = [re.sub(r"=.*", "", part).strip() for part in text.group(1).split(",")]
        return [part.split()[-1] for part in parts if part]


def lines(cupy: Any) -> Iterator[str]:
    """What there is, in order."""
    for owner, prefix in ((cupy, ""), (cupy.ndarray, "ndarray.")):
        for name in sorted(dir(owner)):
            value = getattr(owner, name)
            if name.startswith("_") or inspect.ismodule(value):
                continue
            if isinstance(value, cupy.ufunc):
                yield f"{prefix}{name} u"
            elif callable(value) and not isinstance(value, type):
                known = [each for each in parameters(value) if each != "self"]
                yield " ".join([f"{prefix}{name}", "f", *known])
            else:
                yield f"{prefix}{name} -"


def text() -> str:
    """All of it."""
    import cupy

    return "\n".join([f"# of CuPy {cupy.__version__}", *lines(cupy)]) + "\n"


if __name__ == "__main__":
    sys.path.pop(0)  # this folder has what stands for CuPy
    print(text(), end="")
