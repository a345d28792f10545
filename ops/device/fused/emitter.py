"""Emitter: collects the lines that compute one row, each value once, and what the kernel is given for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...expressions.expr import Expr
from ..column import physical_type
from .types import Refused, c_name, c_type, dtype_of, integer, physical
from .words import ColumnWords, Constants, ConstantWords, JointWords, Lookup, Ranks, Words

#: constants that are handed over rather than written into the text, at most
_HANDED = 200


@dataclass(frozen=True)
class Term:
    """A value of the row, as the text of the kernel names it.

    Attributes:
        type: of the value on the host.
        value: a name, or a constant; anything where the value is null.
        valid: a name, or "true" or "false".
        scalar: the value, if it is a constant.
        words: what the codes of a string stand for.
        cleared: whether the value is known to be 0 where it is null.
    """

    type: pa.DataType
    value: str
    valid: str = "true"
    scalar: pa.Scalar | None = None
    words: Words | None = None
    cleared: bool = False


@dataclass(frozen=True)
class OfWords:
    """A value computed from one column of strings alone: it is found by its code, once the dictionary is known."""

    column: str
    expr: Expr
    type: pa.DataType


@dataclass(frozen=True)
class Argument:
    """What a kernel is given: how it is declared there, and what it is.

    Attributes:
        text: the declaration.
        kind: "values" or "valid" of a column, "table", or "constant".
        of: the column's name; the table's recipe and part; or a NumPy scalar.
    """

    text: str
    kind: str
    of: object


class Emitter:
    """Builds the body of a kernel.

    Args:
        schema: of the rows.
        nullable: columns that come with a validity.

    Attributes:
        reads: what is read of the row's columns: C type, name of the value, and pointer.
        lines: what is computed of it, in order.
        bound: names that expressions may use beside the columns, and their values.
        guard: in which rows what fails counts, as a condition.
    """

    def __init__(self, schema: pa.Schema, nullable: frozenset[str]):
        self.schema = schema
        self.reads: list[tuple[str, str, str]] = []
        self.lines: list[str] = []
        self.arguments: dict[object, Argument] = {}
        self.fails = False
        self.bound: dict[str, Term] = {}
        self.guard = "true"
        self._nullable = nullable
        self._names: dict[tuple[str, str], str] = {}
        self._failures: set[str] = set()

    def let(self, ctype: str, text: str) -> str:
        """Name a value; the same text has the same name."""
        if text in ("true", "false") or text.isidentifier():
            return text
        if (ctype, text) not in self._names:
            name = f"v{len(self._names)}"
            self._names[ctype, text] = name
            self.lines.append(f"const {ctype} {name} = {text};")
        return self._names[ctype, text]

    def term(self, type: pa.DataType, text: str, valid: str = "true") -> Term:
        """Compute a value of a type."""
        return Term(type, self.let(c_type(type), text), valid)

    def strict(self, type: pa.DataType, text: str, args: Iterable[Term]) -> Term:
        """Compute a value that is null where an argument is."""
        return self.term(type, text, self.every(arg.valid for arg in args))

    def every(self, valids: Iterable[str]) -> str:
        """Whether all of some conditions hold."""
        parts = [valid for valid in dict.fromkeys(valids) if valid != "true"]
        if "false" in parts:
            return "false"
        return self.let("bool", " && ".join(parts)) if parts else "true"

    def some(self, valids: Iterable[str]) -> str:
        """Whether one of some conditions holds."""
        parts = [valid for valid in dict.fromkeys(valids) if valid != "false"]
        if "true" in parts:
            return "true"
        return self.let("bool", " || ".join(parts)) if parts else "false"

    def fail(self, condition: str) -> None:
        """Say that the host would raise where a condition holds, of rows that count."""
        condition = self.every([self.guard, condition])
        if condition == "false" or condition in self._failures:
            return
        self._failures.add(condition)
        self.fails = True
        self.lines.append(f"if ({condition}) failed[0] = 1;")

    def constant(self, scalar: pa.Scalar) -> Term:
        """Write a constant; floats are handed over, so that others need no other kernel."""
        type = scalar.type
        if pa.types.is_string(type):
            if not scalar.is_valid:
                return Term(type, "0", "false", scalar, ConstantWords(()))
            return Term(type, "0", "true", scalar, ConstantWords((scalar.as_py(),)))
        ctype = c_type(type)
        if not scalar.is_valid:
            return Term(type, integer(0, ctype), "false", scalar)
        value = physical(scalar)
        if isinstance(value, float):
            return Term(type, self._handed(dtype_of(type).type(value)), "true", scalar)
        return Term(type, integer(int(value), ctype), "true", scalar)

    def null(self, type: pa.DataType) -> Term:
        """A null of a type."""
        return self.constant(pa.scalar(None, type))

    def column(self, name: str) -> Term:
        """Read a column of the row."""
        type = self.schema.field(name).type
        return self._read(name, type, c_type(type))

    def passing(self, name: str) -> Term:
        """Read a column that is only handed on, of any type that has a place there."""
        type = self.schema.field(name).type
        dtype = physical_type(type)
        assert dtype is not None
        return self._read(name, type, c_name(dtype))

    def _read(self, name: str, type: pa.DataType, ctype: str) -> Term:
        pointer = self._given(("values", name), f"const {ctype} *__restrict__", "values", name)
        valid = "true"
        if name in self._nullable:
            mask = self._given(("valid", name), "const bool *__restrict__", "valid", name)
            valid = self._loaded("bool", mask)
        words = ColumnWords(name) if pa.types.is_string(type) else None
        return Term(type, self._loaded(ctype, pointer), valid, None, words, cleared=True)

    def _loaded(self, ctype: str, pointer: str) -> str:
        key = (ctype, f"{pointer}[i]")
        if key not in self._names:
            self._names[key] = f"v{len(self._names)}"
            self.reads.append((ctype, self._names[key], pointer))
        return self._names[key]

    def found(self, value: OfWords | Term) -> Term:
        """Turn a value that is found by a code into one of the row."""
        if isinstance(value, Term):
            return value
        code = self.column(value.column)
        if value.expr.token == f"col({value.column!r})":
            return code
        return self.looked_up(code, Lookup(ColumnWords(value.column), value.column, value.expr, value.type))

    def looked_up(self, code: Term, lookup: Lookup) -> Term:
        """Find what became of a string."""
        ctype = c_type(lookup.type)
        place = code.value if code.valid == "true" else f"({code.valid} ? {code.value} : -1)"
        place = self.let("int", f"{place} + 1")
        values, valids = self.table((lookup, "values"), ctype), self.table((lookup, "valid"), "bool")
        words = lookup if pa.types.is_string(lookup.type) else None
        valid = self.let("bool", f"{valids}[{place}]")
        return Term(lookup.type, self.let(ctype, f"{values}[{place}]"), valid, None, words)

    def together(self, terms: list[Term], ascending: bool = True) -> list[Term]:
        """Give strings one dictionary, so that their codes are equal where they are; or compare as they do."""
        sources = tuple(dict.fromkeys(term.words for term in terms if term.words is not None))
        if len(sources) == 1 and (not ascending or _ascends(sources[0])):
            return terms
        joint = JointWords(sources, ascending)
        moved = []
        for term in terms:
            assert term.words is not None
            ranks = self.table((Ranks(joint, term.words), "values"), "int")
            moved.append(
                Term(term.type, self.let("int", f"{ranks}[{term.value}]"), term.valid, term.scalar, joint)
            )
        return moved

    def table(self, recipe: tuple[object, str], ctype: str) -> str:
        """Return the name of an array that is made on the host."""
        return self._given(("table", recipe), f"const {ctype} *__restrict__", "table", recipe)

    def place(self, value: str, type: pa.DataType, members: pa.Array) -> str:
        """Return the text for a value's place among ascending members, -1 where it isn't one of them."""
        ctype = c_type(type)
        count = len(members)
        if not count:
            return "-1"
        return f"find({self.table((Constants(members), 'values'), ctype)}, {count}, {value})"

    def _handed(self, value: np.generic) -> str:
        key = ("constant", value.dtype.name, value.tobytes())
        known = sum(argument.kind == "constant" for argument in self.arguments.values())
        if key not in self.arguments and known >= _HANDED:
            bits = int.from_bytes(value.tobytes(), "little")
            if value.dtype.itemsize == 8:
                return f"__longlong_as_double((long long){bits}ULL)"
            return f"__int_as_float((int){bits}U)"
        return self._given(key, f"const {c_name(value.dtype)}", "constant", value)

    def _given(self, key: object, declared: str, kind: str, of: object) -> str:
        if key not in self.arguments:
            name = f"a{len(self.arguments)}"
            self.arguments[key] = Argument(f"{declared} {name}", kind, of)
        return self.arguments[key].text.split()[-1]


def _ascends(words: Words) -> bool:
    return isinstance(words, JointWords) and words.ascending


Rule = Callable[..., Term]
#: how the calls of a function are computed: takes the emitter, the call, its arguments and the result's type
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Return a decorator that registers the rule of some functions."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def refuse(condition: bool, why: str) -> None:
    """Refuse an expression if a condition holds."""
    if condition:
        raise Refused(why)
