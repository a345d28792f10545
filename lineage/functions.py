"""What a function, class or object is made of, as named parts that decide what it does.

What is installed (the standard library, site-packages, Headwater) is known by name and version; the
user's own code is taken apart: bytecode, constants, captured values, the globals it reads.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import importlib.metadata
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SerializationError

Parts = list[tuple[str, Any]]

#: class attributes that say nothing about what a class does
_CLASS_NOISE = frozenset(
    [
        "__module__",
        "__dict__",
        "__weakref__",
        "__doc__",
        "__qualname__",
        "__firstlineno__",
        "__static_attributes__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__abstractmethods__",
        "_abc_impl",
        "__parameters__",
        "__orig_bases__",
        "__dataclass_params__",
        "__dataclass_fields__",
        "__match_args__",
    ]
)
_DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.MethodWrapperType,
)


class _EmptyCell:
    """Stands for a captured variable that isn't assigned yet."""


def describe_object(value: Any) -> tuple[str, Parts]:
    """Name the parts of an object that decide what it does.

    Args:
        value: a function, class, module, code object, or any object that pickle could take.

    Returns:
        The kind of object, and (name, part) pairs in a fixed order; parts may be objects again. A
        name is what an error should say about a part that can't be encoded, or empty.

    Raises:
        SerializationError: the object can't be sent to another process.
    """
    if isinstance(value, types.ModuleType):
        return "module", [("", value.__name__), ("", _version(value.__name__))]
    if isinstance(value, types.CodeType):
        return "code", _code_parts(value)
    if name := _installed_name(value):
        return "installed", [("", part) for part in name]
    if isinstance(value, types.FunctionType):
        return "function", _function_parts(value)
    if isinstance(value, types.MethodType):
        return "method", [("", value.__func__), ("the object that the method belongs to", value.__self__)]
    if isinstance(value, type):
        return "class", _class_parts(value)
    if isinstance(value, staticmethod | classmethod):
        return type(value).__name__, [("", value.__func__)]
    if isinstance(value, property):
        return "property", [("", value.fget), ("", value.fset), ("", value.fdel)]
    if isinstance(value, types.BuiltinFunctionType):
        return "builtin", [("", value.__name__), ("", value.__self__)]
    if isinstance(value, _DESCRIPTORS):
        return "descriptor", [("", value.__name__), ("", getattr(value, "__objclass__", None))]
    if isinstance(value, functools._lru_cache_wrapper):
        return "cached", [("", value.__wrapped__)]
    if isinstance(value, functools.cached_property):
        return "cached", [("", value.func)]
    return "object", _object_parts(value)


def _function_parts(function: types.FunctionType) -> Parts:
    name = function.__qualname__
    parts: Parts = [("", function.__code__)]
    parts += [
        (f"a default of {name}()", function.__defaults__),
        (f"a default of {name}()", function.__kwdefaults__),
    ]
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            content = cell.cell_contents
        except ValueError:
            content = _EmptyCell
        parts.append((f"the variable {variable!r} that {name}() captures", content))
    if not is_installed(function.__module__):
        parts += _global_parts(function)
    return parts


def _global_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals that a function reads; of the user's own modules, the attributes that it names."""
    names, attributes = set(), set()
    for code in _nested_codes(function.__code__):
        names |= _global_names(code)
        attributes |= set(code.co_names)
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        yield f"the global {name!r} that {function.__qualname__}() reads", value
        if isinstance(value, types.ModuleType):
            yield from _module_parts(value, attributes, frozenset())


def _module_parts(
    module: types.ModuleType, attributes: set[str], above: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    if is_installed(module.__name__) or module.__name__ in above:
        return
    for name in sorted(attributes & vars(module).keys()):
        value = vars(module)[name]
        yield f"{module.__name__}.{name}", value
        if isinstance(value, types.ModuleType):
            yield from _module_parts(value, attributes, above | {module.__name__})


def _nested_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested_codes(constant)


def _global_names(code: types.CodeType) -> set[str]:
    return {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


def _code_parts(code: types.CodeType) -> Parts:
    arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    variables = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    handlers = getattr(code, "co_exceptiontable", b"")
    return [("", code.co_code), ("", code.co_consts), ("", arguments), ("", variables), ("", handlers)]


def _class_parts(value: type) -> Parts:
    bases: Parts = [("", base) for base in value.__bases__]
    members: Parts = [
        (f"{value.__qualname__}.{name}", member)
        for name, member in sorted(vars(value).items())
        if name not in _CLASS_NOISE
    ]
    return bases + members


def _object_parts(value: Any) -> Parts:
    """What pickle would take of an object: how to make it, from what, and its state."""
    tokenize = getattr(type(value), "__dask_tokenize__", None)
    if tokenize is not None:
        return [("", type(value)), ("", tokenize(value))]
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
    except Exception as error:
        raise SerializationError(
            f"a {type(value).__module__}.{type(value).__qualname__} can't be sent to the workers ({error}). "
            "Make it inside the function, or pass plain values, arrays or a path instead."
        ) from error
    if isinstance(reduced, str):
        return [("", getattr(value, "__module__", None)), ("", reduced)]
    make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    kind = type(value).__qualname__
    return [
        ("", make),
        (f"a part of a {kind}", arguments),
        (f"an attribute of a {kind}", state),
        (f"an item of a {kind}", None if items is None else list(items)),
        (f"an item of a {kind}", None if pairs is None else dict(pairs)),
    ]


def _installed_name(value: Any) -> tuple[str, str, str] | None:
    """Return (module, qualified name, version) of something that an installed module defines, or None."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not is_installed(module):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return (module, name, _version(module)) if found is value else None


@functools.cache
def is_installed(module: str | None) -> bool:
    """Whether a module is the standard library's, Headwater's, or lies in site-packages."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return top != "__main__"
    files = (getattr(sys.modules.get(name), "__file__", None) for name in (module or "", top))
    return any(file and {"site-packages", "dist-packages"} & set(Path(file).parts) for file in files)


@functools.cache
def _version(module: str) -> str:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return importlib.metadata.version(top)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""
