"""The expression tree: immutable values computed from the columns of one table.

Expressions are built by operators and methods, typed against a schema before anything runs
(`infer`), and evaluated on a table (`evaluate`). They compare by `token`, a canonical text, because
``==`` builds an expression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa

from ...errors import TypeMismatchError, column_not_found
from .aggregates import Aggregations
from .methods import Methods
from .namespaces import Namespaces
from .operators import Operators
from .types import Value


class Expr(Operators, Methods, Aggregations, Namespaces):
    """A value for each row of a table.

    Subclasses give `children`, `with_children`, `token`, `infer` and `evaluate`. What users write on
    an expression is inherited: operators, methods, aggregations, and the namespaces ``.str``, ``.dt`` ….
    """

    children: tuple[Expr, ...] = ()

    #: whether its text is an operator's, which needs parentheses inside a longer one
    is_operator: bool = False

    def with_children(self, children: Sequence[Expr]) -> Expr:
        """Return the same expression over other children."""
        if children:
            raise ValueError(f"{type(self).__name__} takes no children")
        return self

    @cached_property
    def token(self) -> str:
        """Canonical text: equal tokens mean equal values, in every process."""
        raise NotImplementedError

    def infer(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of the value over a schema, or raise ColumnNotFoundError, TypeMismatchError."""
        raise NotImplementedError

    def evaluate(self, table: pa.Table) -> Value:
        """Compute the value for each row of a table; a `pa.Scalar` stands for the same value in each."""
        raise NotImplementedError

    @property
    def output_name(self) -> str | None:
        """The column name the value takes when none is given: its leftmost column's, or None."""
        return next((part.name for part in self.walk() if isinstance(part, Alias | Column)), None)

    def columns(self) -> frozenset[str]:
        """The names of the columns the value is computed from."""
        return self._columns

    @cached_property
    def _columns(self) -> frozenset[str]:
        return frozenset(part.name for part in self.walk() if isinstance(part, Column))

    def walk(self) -> Iterator[Expr]:
        """Yield this expression and everything below it, parents first, from left to right."""
        stack: list[Expr] = [self]
        while stack:
            part = stack.pop()
            yield part
            stack.extend(reversed(part.children))

    def transform(self, function: Callable[[Expr], Expr]) -> Expr:
        """Rebuild the tree bottom up, each expression replaced by ``function`` of it."""

        def rebuild(part: Expr, children: list[Expr]) -> Expr:
            changed = any(new is not old for new, old in zip(children, part.children))
            return function(part.with_children(children) if changed else part)

        return fold(self, rebuild)

    def __hash__(self) -> int:
        return hash(self.token)

    def __repr__(self) -> str:
        return str(self)

    def __bool__(self) -> bool:
        raise TypeMismatchError(
            f"{self} is an expression, with one value for each row, and has no single truth value. "
            "Write & for and, | for or, ~ for not, and .is_in([...]) for membership."
        )


T = TypeVar("T")


def fold(root: Expr, function: Callable[[Expr, list[T]], T], leaves: type | None = None) -> T:
    """Compute something of an expression from what was computed of its children, without recursion.

    Args:
        root: the expression.
        function: takes an expression and its children's results. Called once for each object.
        leaves: only expressions of this class are looked into; None is all.

    Returns:
        The root's result.

    Example:
        >>> from headwater.ops.expressions import col
        >>> fold((col("a") + col("b")) * 2, lambda part, depths: 1 + max(depths, default=0))
        3
    """
    done: dict[int, T] = {}
    stack = [root]
    while stack:
        part = stack[-1]
        children = part.children if leaves is None or isinstance(part, leaves) else ()
        missing = [child for child in children if id(child) not in done]
        if missing:
            stack.extend(reversed(missing))
            continue
        stack.pop()
        if id(part) not in done:
            done[id(part)] = function(part, [done[id(child)] for child in children])
    return done[id(root)]


class Computed(Expr):
    """An expression computed from its children's values, one level at a time.

    Subclasses give `token_of`, `type_of`, `value_of` and `text_of`. So thousands of terms need no Python
    recursion, and an expression that stands in several places of a tree is evaluated once.
    """

    def token_of(self, tokens: Sequence[str]) -> str:
        """Return the token, given the children's."""
        raise NotImplementedError

    def type_of(self, types: Sequence[pa.DataType]) -> pa.DataType:
        """Return the type of the value, given the children's."""
        raise NotImplementedError

    def value_of(self, values: Sequence[Value]) -> Value:
        """Return the value, given the children's."""
        raise NotImplementedError

    def text_of(self, texts: Sequence[str], operands: Sequence[str]) -> str:
        """Return the text, given the children's, and these in parentheses where a longer text needs them."""
        raise NotImplementedError

    @cached_property
    def token(self) -> str:
        def step(part: Expr, tokens: list[str]) -> str:
            if "token" not in part.__dict__ and isinstance(part, Computed):
                part.__dict__["token"] = part.token_of(tokens)
            return part.token

        return fold(self, step, Computed)

    def infer(self, schema: pa.Schema) -> pa.DataType:
        def step(part: Expr, types: list[pa.DataType]) -> pa.DataType:
            return part.type_of(types) if isinstance(part, Computed) else part.infer(schema)

        return fold(self, step, Computed)

    def evaluate(self, table: pa.Table) -> Value:
        def step(part: Expr, values: list[Value]) -> Value:
            return part.value_of(values) if isinstance(part, Computed) else part.evaluate(table)

        return fold(self, step, Computed)

    def __str__(self) -> str:
        def step(part: Expr, texts: list[str]) -> str:
            if not isinstance(part, Computed):
                return str(part)
            operands = [f"({t})" if child.is_operator else t for child, t in zip(part.children, texts)]
            return part.text_of(texts, operands)

        return fold(self, step, Computed)

    def __reduce__(self) -> tuple[Any, ...]:
        flat: list[Any] = []

        def step(part: Expr, children: list[int]) -> int:
            own = {k: v for k, v in part.__dict__.items() if k not in ("children", "token") and k[0] != "_"}
            flat.append((type(part), own, children) if isinstance(part, Computed) else part)
            return len(flat) - 1

        fold(self, step, Computed)
        return _unflatten, (flat,)


def _unflatten(flat: Sequence[Any]) -> Expr:
    built: list[Expr] = []
    for item in flat:
        if isinstance(item, tuple):
            kind, own, children = item
            item = kind.__new__(kind)
            item.__dict__.update(own, children=tuple(built[i] for i in children))
        built.append(item)
    return built[-1]


class Column(Expr):
    """The column of that name."""

    def __init__(self, name: str):
        if not isinstance(name, str):
            raise TypeMismatchError(f"col() takes a column name, not {name!r} ({type(name).__name__}).")
        self.name = name

    @cached_property
    def token(self) -> str:
        return f"col({self.name!r})"

    @property
    def output_name(self) -> str:
        return self.name

    def infer(self, schema: pa.Schema) -> pa.DataType:
        index = schema.get_field_index(self.name)
        if index < 0:
            raise column_not_found(self.name, schema.names, str(self))
        return schema.field(index).type

    def evaluate(self, table: pa.Table) -> Value:
        return table.column(self.name)

    def __str__(self) -> str:
        return f"col({self.name!r})"


class Literal(Expr):
    """One constant, typed as an Arrow scalar.

    ``typed`` is true where the user named the type; an untyped number takes the type of what it meets.
    """

    def __init__(self, scalar: pa.Scalar, typed: bool = False):
        self.scalar = scalar
        self.typed = typed

    @cached_property
    def token(self) -> str:
        # an untyped literal's value depends on what it meets, so it isn't the typed one
        return f"lit({_canonical(self.scalar)}: {self.scalar.type}{'' if self.typed else '?'})"

    @property
    def output_name(self) -> str | None:
        return None

    def infer(self, schema: pa.Schema) -> pa.DataType:
        return self.scalar.type

    def evaluate(self, table: pa.Table) -> Value:
        return self.scalar

    def __str__(self) -> str:
        return _shorten(self.scalar.as_py())


class Alias(Computed):
    """The same value under another name."""

    def __init__(self, expr: Expr, name: str):
        self.children = (expr,)
        self.name = name

    def with_children(self, children: Sequence[Expr]) -> Alias:
        return Alias(children[0], self.name)

    def token_of(self, tokens: Sequence[str]) -> str:
        return f"alias({tokens[0]}, {self.name!r})"

    def type_of(self, types: Sequence[pa.DataType]) -> pa.DataType:
        return types[0]

    def value_of(self, values: Sequence[Value]) -> Value:
        return values[0]

    def text_of(self, texts: Sequence[str], operands: Sequence[str]) -> str:
        return f"{operands[0]}.alias({self.name!r})"


class AggregateCall(Expr):
    """An aggregation of an expression over a group: legal only inside `agg` (see ops/aggregate.py).

    ``function`` names a record in `ops.aggregate.AGGREGATIONS`; no children means "of the rows".
    """

    def __init__(
        self, function: str, children: Sequence[Expr] = (), options: tuple[tuple[str, Any], ...] = ()
    ):
        self.function = function
        self.children = tuple(children)
        self.options = options

    def with_children(self, children: Sequence[Expr]) -> Expr:
        return AggregateCall(self.function, children, self.options)

    @cached_property
    def token(self) -> str:
        inner = ", ".join([child.token for child in self.children] + [f"{k}={v!r}" for k, v in self.options])
        return f"agg.{self.function}({inner})"

    def infer(self, schema: pa.Schema) -> pa.DataType:
        raise TypeMismatchError(
            f"{self} is an aggregation and stands only inside agg(...). "
            "Write ds.agg(...) or ds.group_by(...).agg(...)."
        )

    def evaluate(self, table: pa.Table) -> Value:
        self.infer(table.schema)
        raise AssertionError("unreachable")

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options)
        return (
            f"{operand(self.children[0])}.{self.function}({options})"
            if self.children
            else f"{self.function}()"
        )


def operand(expr: Expr) -> str:
    """Return an expression's text as part of a longer one: an operator's in parentheses."""
    return f"({expr})" if expr.is_operator else str(expr)


def _canonical(scalar: pa.Scalar) -> str:
    """Text of a scalar that no library version or optional package changes."""
    if not scalar.is_valid:
        return "None"
    if pa.types.is_temporal(scalar.type):
        return str(scalar.value)
    if pa.types.is_list(scalar.type):
        return f"[{', '.join(_canonical(item) for item in scalar)}]"
    if pa.types.is_struct(scalar.type):
        return "{" + ", ".join(f"{name!r}: {_canonical(item)}" for name, item in scalar.items()) + "}"
    return repr(scalar.as_py())


def _shorten(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"[{', '.join(map(_shorten, value[:5]))}, … {len(value) - 5} more]"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-12:]}"


def evaluate_column(
    expr: Expr, table: pa.Table, type: pa.DataType | None = None
) -> pa.ChunkedArray | pa.Array:
    """Evaluate an expression to a column as long as the table, repeating a scalar.

    Args:
        expr: the expression.
        table: the rows.
        type: the type the column must have; None leaves it as computed.

    Returns:
        An array of ``table.num_rows`` values.
    """
    value = expr.evaluate(table)
    if isinstance(value, pa.Scalar):
        if type is not None and value.type != type:
            value = value.cast(type)
        return pa.repeat(value, table.num_rows)
    if type is not None and value.type != type:
        value = value.cast(type)
    return value
