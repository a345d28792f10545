"""Call: a named function of expressions, and the registry of functions that calls refer to.

A call holds only the function's name, so that it pickles small and has a canonical text.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pyarrow as pa

from ...errors import ParameterError, TypeMismatchError
from .expr import Computed, Expr, Literal, Value, operand
from .literals import as_expr
from .types import NoCommonTypeError, is_text, type_name

#: brings the values of a call to types its kernel takes; told which are untyped literals
Align = Callable[[Sequence[Value], Sequence[bool]], Sequence[Value]]


def as_is(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Leave the values of a call as they are."""
    return values


@dataclass(frozen=True)
class Function:
    """What a call does, and how it reads.

    Attributes:
        name: as in FUNCTIONS; the method's name where it is one, as "str.lower".
        kernel: Arrow values to an Arrow value; at least one argument is an array, others may be scalars.
        align: brings the arguments to one type first.
        symbol: the operator's sign, if it is one.
        notation: "method", "operator" or "function".
        strict: whether a null in any argument makes the value null.
        raises: whether some values of the right type make it raise.
        hint: what to write instead when types don't fit; ``{0}`` is the first argument.
        display: the text of a call whose notation is its own, from the texts of its arguments as they are and
            in parentheses.
    """

    name: str
    kernel: Callable[..., Value]
    align: Align = as_is
    symbol: str = ""
    notation: str = "method"
    strict: bool = True
    raises: bool = False
    hint: str = ""
    display: Callable[[Sequence[str], Sequence[str]], str] | None = None


#: every function a Call may name
FUNCTIONS: dict[str, Function] = {}


def register(name: str, **properties: Any) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    """Return a decorator that puts a kernel into FUNCTIONS.

    Args:
        name: the function's name.
        properties: other fields of `Function`.

    Returns:
        The decorator; it returns the kernel unchanged.

    Example:
        >>> import pyarrow.compute as pc
        >>> from headwater.ops.expressions import col
        >>> kernel = register("doubled")(lambda x: pc.add(x, x))
        >>> str(Call("doubled", (col("x"),)))
        "col('x').doubled()"
        >>> del FUNCTIONS["doubled"]
    """
    if properties.get("symbol"):
        properties["notation"] = "operator"

    def decorate(kernel: Callable[..., Value]) -> Callable[..., Value]:
        FUNCTIONS[name] = Function(name, kernel, **properties)
        return kernel

    return decorate


def unary(function: Callable[..., Value]) -> Callable[[Value], Value]:
    """Return an Arrow function of one value as a kernel, without its other parameters."""
    return lambda x: function(x)


class Call(Computed):
    """A function of the registry applied to expressions."""

    def __init__(self, function: str, args: Sequence[Expr], options: tuple[tuple[str, Any], ...] = ()):
        self.function = function
        self.children = tuple(args)
        self.options = options

    def with_children(self, children: Sequence[Expr]) -> Call:
        return Call(self.function, children, self.options)

    @property
    def definition(self) -> Function:
        """The function's record."""
        return FUNCTIONS[self.function]

    @property
    def output_name(self) -> str | None:
        if self.function == "when":  # named by its values, not by what decides among them
            values = (*self.children[1::2], self.children[-1])
            return next((name for value in values if (name := value.output_name)), None)
        return super().output_name

    def token_of(self, tokens: Sequence[str]) -> str:
        inner = ", ".join([*tokens, *(f"{k}={v!r}" for k, v in self.options)])
        return f"{self.function}({inner})"

    @cached_property
    def _types(self) -> dict[tuple[pa.DataType, ...], pa.DataType]:
        return {}

    def type_of(self, types: Sequence[pa.DataType]) -> pa.DataType:
        key = tuple(types)
        if key not in self._types:
            self._types[key] = self._infer(key)
        return self._types[key]

    def _infer(self, types: Sequence[pa.DataType]) -> pa.DataType:
        values = [
            child.scalar if isinstance(child, Literal) else pa.nulls(0, type)
            for child, type in zip(self.children, types)
        ]
        try:
            return self._compute(values).type
        except TypeMismatchError:
            raise
        except (pa.ArrowException, TypeError) as error:
            raise self._mismatch(types, error) from None

    def value_of(self, values: Sequence[Value]) -> Value:
        try:
            return self._compute(values)
        except (pa.ArrowException, NoCommonTypeError) as error:
            raise TypeMismatchError(f"{self}: {error}") from error

    def _compute(self, values: Sequence[Value]) -> Value:
        definition = self.definition
        weak = [isinstance(child, Literal) and not child.typed for child in self.children]
        values = list(definition.align(values, weak))
        if not all(isinstance(value, pa.Scalar) for value in values):
            return definition.kernel(*values, **dict(self.options))
        values[0] = pa.repeat(values[0], 1)
        return definition.kernel(*values, **dict(self.options))[0]

    def _mismatch(self, types: Sequence[pa.DataType], error: Exception) -> TypeMismatchError:
        arrived = " and ".join(dict.fromkeys(type_name(type) for type in types))
        name = self.definition.symbol or self.function
        why = f" ({error})" if isinstance(error, NoCommonTypeError | pa.ArrowInvalid) else ""
        return TypeMismatchError(
            f"{self}: '{name}' doesn't take {arrived}{why}. {self._hint(types)}".rstrip()
        )

    def _hint(self, types: Sequence[pa.DataType]) -> str:
        if self.definition.hint:
            return self.definition.hint.format(*(operand(child) for child in self.children))
        if len(types) < 2 or types[0] == types[1]:
            return ""
        if self.function in ("is_in", "when", "coalesce"):
            return "Write values of one type, or cast them to one, as col('x').cast('string')."
        at = next((i for i, type in enumerate(types[:2]) if is_text(type)), 0)
        written = self.children[at]
        if isinstance(written, Literal) and not isinstance(self.children[1 - at], Literal):
            at = 1 - at
        return f"Cast one, as {operand(self.children[at])}.cast('{type_name(types[1 - at])}')."

    @property
    def is_operator(self) -> bool:  # type: ignore[override]
        return self.definition.notation == "operator"

    def text_of(self, texts: Sequence[str], operands: Sequence[str]) -> str:
        definition = self.definition
        if definition.display:
            return definition.display(texts, operands)
        if definition.symbol:
            return (
                definition.symbol + operands[0]
                if len(texts) == 1
                else f" {definition.symbol} ".join(operands)
            )
        if definition.notation == "function":
            return f"{self.function}({', '.join([*texts, *self._shown_options()])})"
        rest = ", ".join([*texts[1:], *self._shown_options()])
        receiver = f"lit({texts[0]})" if isinstance(self.children[0], Literal) else operands[0]
        return f"{receiver}.{self.function}({rest})"

    def _shown_options(self) -> list[str]:
        """Required options by position, others by name and only where they aren't the default."""
        parameters = inspect.signature(self.definition.kernel).parameters
        shown, named = [], []
        for name in sorted(dict(self.options), key=list(parameters).index):
            value, default = dict(self.options)[name], parameters[name].default
            if default is inspect.Parameter.empty:
                shown.append(repr(value))
            elif value != default:
                named.append(f"{name}={value!r}")
        return shown + named


def call(function: str, *args: Any, **options: Any) -> Call:
    """Build a call, lifting Python values to literals.

    Args:
        function: a name in FUNCTIONS.
        args: expressions or constants.
        options: the kernel's keyword arguments; plain immutable Python values.

    Returns:
        The call.

    Example:
        >>> from headwater.ops.expressions import col
        >>> call("add", col("x"), 1)
        col('x') + 1
    """
    given = tuple((name, _checked(function, name, options[name])) for name in sorted(options))
    return Call(function, [as_expr(arg) for arg in args], given)


#: what an option takes, by the annotation of the kernel's parameter
_OPTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "str": (lambda value: value if isinstance(value, str) else None, "a text"),
    "bool": (lambda value: value if isinstance(value, bool) else None, "True or False"),
    "int": (lambda value: None if isinstance(value, bool) else operator.index(value), "a whole number"),
    "float": (lambda value: None if isinstance(value, str | bool) else float(value), "a number"),
}


def _checked(function: str, option: str, value: Any) -> Any:
    """Return an option as its kernel takes it, NumPy's numbers as Python's."""
    annotation = _annotations(function).get(option, "")
    kinds = [_OPTIONS[kind] for kind in str(annotation).split(" | ") if kind in _OPTIONS]
    if value is None and "None" in str(annotation):
        return None
    for convert, _ in kinds:
        with contextlib.suppress(TypeError, ValueError):
            if (converted := convert(value)) is not None:
                return converted
    if kinds:
        wanted = " or ".join(text for _, text in kinds)
        raise ParameterError(f"{function}({option}={value!r}): give {wanted}, not {type(value).__name__}.")
    return value


@cache
def _annotations(function: str) -> dict[str, Any]:
    return inspect.get_annotations(FUNCTIONS[function].kernel)
