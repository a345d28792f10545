"""Lowering: an expression over a schema into the lines of a kernel, or why that can't be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ....errors import HeadwaterError
from ...expressions.call import Call, Function
from ...expressions.cast import Cast
from ...expressions.expr import Alias, Column, Expr, Literal, fold
from ...expressions.types import NoCommonTypeError
from . import comparison
from .casts import convert
from .emitter import RULES, Emitter, OfWords, Term
from .types import Refused, c_type
from .words import Lookup

Lowered = Term | OfWords
_NULLS = ("is_null", "is_not_null")


class Special(Call):
    """A function that isn't among the users'; it brings its own rule.

    Subclasses give ``type_of`` and ``value_of``, for the host, and `lower`. Attributes are public, so that they
    pickle, and tell themselves in the options.
    """

    #: whether it is computed in the row, even of a column of strings alone
    in_row = False

    def __init__(self, args: Sequence[Expr], **options: Any):
        super().__init__(type(self).__name__, args, tuple(options.items()))

    def with_children(self, children: Sequence[Expr]) -> Special:
        copy = type(self).__new__(type(self))
        copy.function, copy.options, copy.children = self.function, self.options, tuple(children)
        return copy

    @property
    def definition(self) -> Function:
        return Function(self.function, self._never, notation="function")

    def token_of(self, tokens: Sequence[str]) -> str:
        said = [f"{k}={v.to_pylist() if isinstance(v, pa.Array) else v!r}" for k, v in self.options]
        return f"{self.function}({', '.join([*tokens, *said])})"

    def text_of(self, texts: Sequence[str], operands: Sequence[str]) -> str:
        return f"{self.function}({', '.join(texts)})"

    def lower(self, emit: Emitter, args: list[Term], type: pa.DataType) -> Term:
        """Compute it from the values of its arguments."""
        raise NotImplementedError

    def option(self, name: str) -> Any:
        """What it was told by name."""
        return dict(self.options)[name]

    def _never(self, *values: Any) -> Any:
        raise NotImplementedError


def lower(emit: Emitter, expr: Expr) -> Term:
    """Write the lines that compute an expression.

    Args:
        emit: where they go.
        expr: over the emitter's schema, its constants folded.

    Raises:
        Refused: it has no form in a kernel.
    """

    def step(part: Expr, parts: list[Lowered]) -> Lowered:
        try:
            return _step(emit, part, parts)
        except Refused as error:
            if str(error).startswith("`"):
                raise
            raise Refused(f"`{part}`: {error}") from None

    return emit.found(fold(expr, step))


def _step(emit: Emitter, part: Expr, parts: list[Lowered]) -> Lowered:
    if isinstance(part, Column):
        if part.name in emit.bound:
            return emit.bound[part.name]
        type = emit.schema.field(part.name).type
        return OfWords(part.name, part, type) if pa.types.is_string(type) else emit.column(part.name)
    if isinstance(part, Literal):
        # a bare null or a list has no place there; the calls that take one read it themselves
        return Term(part.scalar.type, "", "false", part.scalar)
    if isinstance(part, Alias):
        return parts[0]
    if not isinstance(part, Call | Cast):
        raise Refused("it stands only inside agg(...)")
    try:
        type = part.type_of([value.type for value in parts])
    except (HeadwaterError, NoCommonTypeError, pa.ArrowException, TypeError) as error:
        raise Refused(f"it doesn't type there ({error})") from None
    column = _only_words(part, parts)
    if column is not None:
        return OfWords(column, part, type)
    values = [emit.found(value) for value in parts]
    if _of_one_text(part, values):
        return _by_word(emit, part, values, type)
    if isinstance(part, Cast):
        return convert(emit, _constant(emit, values[0]), type, part.strict)
    return _call(emit, part, values, type)


def _only_words(part: Expr, parts: Sequence[Lowered]) -> str | None:
    """The one column of strings that all arguments but constants are computed from, if it is so."""
    if isinstance(part, Special) and part.in_row:
        return None
    if isinstance(part, Call) and part.function in _NULLS and isinstance(part.children[0], Column):
        return None
    columns = {
        value.column if isinstance(value, OfWords) else None
        for value, child in zip(parts, part.children)
        if not isinstance(child, Literal)
    }
    return columns.pop() if len(columns) == 1 else None


def _of_one_text(part: Expr, values: Sequence[Term]) -> bool:
    """Whether something is asked of one string alone that only the host can tell."""
    texts = [value for value, child in zip(values, part.children) if not isinstance(child, Literal)]
    if len(texts) != 1 or texts[0].words is None or isinstance(part, Special):
        return False
    return isinstance(part, Cast) or (isinstance(part, Call) and part.function not in RULES)


def _by_word(emit: Emitter, part: Expr, values: list[Term], type: pa.DataType) -> Term:
    """Ask it of each word that a computed string may be."""
    children = [child if isinstance(child, Literal) else Column("text") for child in part.children]
    code = next(value for value, child in zip(values, part.children) if not isinstance(child, Literal))
    assert code.words is not None
    lookup = Lookup(code.words, "text", part.with_children(children), type)
    if lookup.may_raise:
        raise Refused("it may raise, and of computed texts that is seen on the host")
    return emit.looked_up(code, lookup)


def _constant(emit: Emitter, term: Term) -> Term:
    return emit.constant(term.scalar) if term.value == "" and term.scalar is not None else term


def _call(emit: Emitter, part: Call, values: list[Term], type: pa.DataType) -> Term:
    if isinstance(part, Special):
        return part.lower(emit, values, type)
    if part.function in _NULLS:
        return RULES[part.function](emit, part, values, type)
    if part.function not in RULES and part.function != "is_in":
        raise Refused("it is computed on the host")
    stand_ins = [
        child.scalar if isinstance(child, Literal) else pa.nulls(0, value.type)
        for child, value in zip(part.children, values)
    ]
    weak = [isinstance(child, Literal) and not child.typed for child in part.children]
    aligned = list(part.definition.align(stand_ins, weak))
    if part.function == "is_in":
        value = convert(emit, values[0], aligned[0].type)
        return comparison.is_in(emit, value, aligned[1].values, type)
    whole = part.function in comparison.SIGNS and all(pa.types.is_integer(value.type) for value in values)
    if whole and pa.types.is_decimal(aligned[0].type):  # for all 64 bits of both
        return RULES[part.function](emit, part, [_constant(emit, value) for value in values], type)
    args = [
        emit.constant(stand_in) if isinstance(stand_in, pa.Scalar) else convert(emit, value, stand_in.type)
        for value, stand_in in zip(values, aligned)
    ]
    result = RULES[part.function](emit, part, args, type)
    if result.type != type:
        raise Refused(f"it gives {result.type} there, and {type} on the host")
    return result


def output(emit: Emitter, expr: Expr, type: pa.DataType) -> Term:
    """Write the lines that compute a column of a kernel's output."""
    term = _constant(emit, lower(emit, expr))
    if term.type != type:
        raise Refused(f"it gives {term.type}, and the column is {type}")
    c_type(type)
    return term
