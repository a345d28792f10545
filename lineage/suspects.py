"""Suspects: what a function's code names that can give another result for the same rows, each with its line.

A light look at bytecode, without running it: enough to tell the likely cause of a difference that was
seen, not to prove that there is none.
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
import random
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from .functions import is_installed


class Trap(Enum):
    """Why a function may give another result for the same rows."""

    RANDOM = "random numbers without a seed"
    TIME = "the clock"
    SET_ORDER = "the order of a set"
    IDENTITY = "id() or hash(), which differ between processes"
    THREADS = "the order in which threads finish"
    ENVIRONMENT = "the process or machine it runs in"
    STATE = "state kept between calls"
    MEMORY = "memory that was never written"


@dataclass(frozen=True)
class Suspect:
    """A name in a function's code.

    Attributes:
        file, line: where it stands.
        name: as ``time.time``.
        trap: why it is suspect.
    """

    file: str
    line: int
    name: str
    trap: Trap

    @property
    def where(self) -> str:
        """The place as ``FILE:LINE``."""
        return f"{self.file}:{self.line}"


#: what a dotted name begins with, up to a dot or the end
_NAMES: dict[Trap, str] = {
    Trap.RANDOM: r"random\.(?!seed|Random)\w+|secrets|uuid\.uuid[14]|os\.urandom|random\.SystemRandom"
    r"|numpy\.random\.(mtrand\.)?(?!default_rng|seed)[a-z]\w*",
    Trap.TIME: r"time\.(time|monotonic|perf_counter|process_time|thread_time|localtime|gmtime|ctime|strftime)"
    r"(_ns)?|datetime\.(datetime|date)\.(now|utcnow|today|fromtimestamp)|pandas\.(\w+\.)*Timestamp\.(now|today|utcnow)",
    Trap.IDENTITY: r"builtins\.(id|hash)|object\.__(hash|repr)__",
    Trap.THREADS: r"threading|concurrent\.futures|multiprocessing|asyncio|queue|joblib",
    Trap.ENVIRONMENT: r"os\.(environb?|getenv|getpid|getppid|getcwd|uname|cpu_count|listdir|scandir|getlogin)|"
    r"glob|platform|socket|sys\.argv|tempfile|getpass",
    Trap.SET_ORDER: r"builtins\.(set|frozenset)",
    Trap.MEMORY: r"numpy\.(empty|empty_like|ndarray)",
    Trap.STATE: r"builtins\.next|itertools\.count",
}
_PATTERNS = {trap: re.compile(rf"(?:{names})(?=\.|$)") for trap, names in _NAMES.items()}
#: suspect only if called without a seed
_SEEDED = re.compile(
    r"numpy\.random\.(default_rng|RandomState|SeedSequence|PCG64|MT19937|Philox)|random\.Random"
)
_MUTATORS = frozenset(
    [
        "append",
        "add",
        "pop",
        "popitem",
        "popleft",
        "update",
        "setdefault",
        "extend",
        "insert",
        "remove",
        "clear",
    ]
)
_MUTABLE = (list, dict, set, bytearray)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_SILENT = ("PUSH_NULL", "PRECALL", "CACHE", "NOT_TAKEN", "RESUME")
#: modules under whose names nobody knows what they define
_ALIASES = {"posix": "os", "nt": "os", "_thread": "threading"}
_UNKNOWN = object()


def find_suspects(function: Any) -> tuple[Suspect, ...]:
    """Find what could make a function's result differ from call to call, in its code and what it calls.

    Args:
        function: a function, method, partial or callable object. What it calls is followed through
            globals, captured variables and its class, as far as that is the user's own code.

    Returns:
        Suspects by file and line; none of them need be a fault.

    Example:
        >>> import time
        >>> [suspect.name for suspect in find_suspects(lambda batch: {"at": [time.time()]})]
        ['time.time']
    """
    found: set[Suspect] = set()
    seen: set[int] = set()
    queue = list(_functions_of(function, installed=True))
    while queue:
        inner = queue.pop()
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        names = _names(inner)
        for code in _codes(inner.__code__):
            look = _Look(code, names)
            found.update(look.suspects())
            queue += [more for value in look.called for more in _functions_of(value)]
    return tuple(sorted(found, key=lambda suspect: (suspect.file, suspect.line, suspect.name)))


def location(function: Any) -> str:
    """Say where a function was written, as ``FILE:LINE``; empty if it can't be told.

    Example:
        >>> location(len)
        ''
    """
    for inner in _functions_of(function, installed=True):
        return f"{inner.__code__.co_filename}:{inner.__code__.co_firstlineno}"
    return ""


def _functions_of(value: Any, installed: bool = False) -> Iterator[types.FunctionType]:
    """The functions that a callable runs: itself, what it wraps, its class's methods; the user's, or all."""
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, functools.partial):
        yield from _functions_of(value.func, installed)
    elif isinstance(value, types.MethodType):
        yield from _functions_of(value.__func__, installed)
        yield from _functions_of(type(value.__self__), installed)
    elif isinstance(value, types.FunctionType):
        if installed or not is_installed(value.__module__):
            yield value
    elif isinstance(value, type):
        if installed or not is_installed(value.__module__):
            members = sorted(vars(value).items(), key=lambda item: (item[0] != "__call__", item[0]))
            yield from (member for _, member in members if isinstance(member, types.FunctionType))
    elif callable(value) and not isinstance(value, types.BuiltinFunctionType):
        yield from _functions_of(type(value), installed)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(function: types.FunctionType) -> dict[str, Any]:
    """What the names that a function doesn't assign stand for."""
    builtins = function.__globals__.get("__builtins__", {})
    names = dict(vars(builtins) if isinstance(builtins, types.ModuleType) else builtins)
    names.update(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            names[name] = _UNKNOWN
    return names


class _Look:
    """One pass over a code object, following names and the attributes read of them.

    Attributes:
        called: values of the user's own that the code names.
    """

    def __init__(self, code: types.CodeType, names: Mapping[str, Any]):
        self.code, self.names = code, names
        self.called: list[Any] = []
        self._imports: dict[str, str] = {}
        self._module = ""

    def suspects(self) -> Iterator[Suspect]:
        instructions = [i for i in dis.get_instructions(self.code) if i.opname not in _SILENT]
        line = self.code.co_firstlineno
        root, value, dotted = "", _UNKNOWN, ""
        for instruction, following in zip(instructions, [*instructions[1:], None]):
            line = (instruction.positions and instruction.positions.lineno) or line
            name, argument = instruction.opname, instruction.argval
            if name in ("LOAD_ATTR", "LOAD_METHOD") and root:
                if isinstance(value, _MUTABLE) and argument in _MUTATORS:
                    yield self._suspect(line, f"{root}.{argument}()", Trap.STATE)
                value = _attribute(value, argument)
                dotted = _dotted(value) or (dotted and f"{dotted}.{argument}")
            elif name in _LOADS or (name.startswith("LOAD_FAST") and argument in self._imports):
                root = str(argument)
                value = _UNKNOWN if root in self._imports else self.names.get(root, _UNKNOWN)
                dotted = self._imports.get(root) or _dotted(value)
                yield from self._of_value(root, value, line)
            else:
                root = ""
                yield from self._of_instruction(name, argument, line, following)
            if root and (following is None or following.opname not in ("LOAD_ATTR", "LOAD_METHOD")):
                self.called.append(value)
                yield from self._of_name(dotted, line, following)

    def _of_name(self, dotted: str, line: int, following: dis.Instruction | None) -> Iterator[Suspect]:
        for trap, pattern in _PATTERNS.items():
            if pattern.match(dotted):
                yield self._suspect(line, dotted.removeprefix("builtins."), trap)
        bare = following is not None and following.opname == "CALL" and following.arg == 0
        if bare and _SEEDED.fullmatch(dotted):
            yield self._suspect(line, f"{dotted}()", Trap.RANDOM)

    def _of_value(self, name: str, value: Any, line: int) -> Iterator[Suspect]:
        if isinstance(value, _GENERATORS):
            yield self._suspect(line, f"the generator {name!r} made outside of the function", Trap.RANDOM)
        elif isinstance(value, set | frozenset):
            yield self._suspect(line, f"the set {name!r}", Trap.SET_ORDER)

    def _of_instruction(
        self, name: str, argument: Any, line: int, following: dis.Instruction | None
    ) -> Iterator[Suspect]:
        if name == "IMPORT_NAME":
            self._module = str(argument)
        elif name == "IMPORT_FROM":
            self._module = f"{self._module}.{argument}"
        elif name.startswith("STORE_") and self._module:
            top = self._module.partition(".")[0]
            self._imports[str(argument)] = top if argument == top else self._module
            whole, _, _ = self._module.rpartition(".")
            self._module = whole if following is not None and following.opname == "IMPORT_FROM" else ""
        elif name in ("BUILD_SET", "SET_ADD") or (name == "LOAD_CONST" and isinstance(argument, frozenset)):
            if following is None or following.opname != "CONTAINS_OP":
                yield self._suspect(line, "a set", Trap.SET_ORDER)
        elif name == "STORE_GLOBAL" or (name == "STORE_DEREF" and argument in self.code.co_freevars):
            yield self._suspect(line, f"the variable {argument!r} outside of the function", Trap.STATE)
        elif name == "STORE_ATTR" and self.code.co_name != "__init__":
            yield self._suspect(line, f"the attribute {argument!r}", Trap.STATE)
        elif name == "STORE_SUBSCR":
            for outer in sorted({*self.code.co_names, *self.code.co_freevars}):
                if isinstance(self.names.get(outer), _MUTABLE):
                    yield self._suspect(line, f"{outer}[...] =", Trap.STATE)

    def _suspect(self, line: int, name: str, trap: Trap) -> Suspect:
        return Suspect(self.code.co_filename, line, name, trap)


def _attribute(value: Any, name: str) -> Any:
    """Read an attribute where that runs no code of the user's."""
    if isinstance(value, types.ModuleType):
        return vars(value).get(name, _UNKNOWN)
    if isinstance(value, type):
        return inspect.getattr_static(value, name, _UNKNOWN)
    return _UNKNOWN


def _dotted(value: Any) -> str:
    """Name a module, or what an installed module defines, as ``numpy.random.rand``; else empty."""
    if value is os.environ:
        return "os.environ"
    if isinstance(value, types.ModuleType):
        return value.__name__ if is_installed(value.__name__) else ""
    owner = getattr(value, "__self__", None)
    if isinstance(owner, np.random.RandomState):
        return f"numpy.random.{value.__name__}"
    if isinstance(owner, random.Random):
        return f"random.{value.__name__}"
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not is_installed(module):
        return ""
    module = _ALIASES.get(module, module)
    return ".".join(part for part in (*module.split("."), *name.split(".")) if not part.startswith("_"))
