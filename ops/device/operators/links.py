"""Links: what the steps of a chain compute, of what, and the kernels that do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import pyarrow as pa

from ...expressions.analysis import may_raise, substitute
from ...expressions.expr import Column, Expr
from .. import fused  # noqa: F401  (its rules)
from ..fused.emitter import Emitter
from ..fused.lowering import output
from ..fused.programs import Program, TooManyError, mask_of, over_kept, over_rows

#: columns that one kernel writes
RESULTS = 16


@dataclass(frozen=True)
class Keep:
    """A filter: keeps rows for which a predicate, which is never null, is true."""

    predicate: Expr


@dataclass(frozen=True)
class Compute:
    """A projection: each column by its name; what isn't named is dropped. A column as it stands is a `Column`."""

    columns: tuple[tuple[str, Expr, pa.DataType], ...]


Link = Keep | Compute


@dataclass(frozen=True)
class Item:
    """A predicate, or a value that has a name in what follows; over source columns and names before it.

    Attributes:
        name: empty for a predicate.
        expr: what it is.
        type: its type.
        risky: whether it may raise.
    """

    name: str
    expr: Expr
    type: pa.DataType
    risky: bool = False


class Layout:
    """The predicates and values of a chain in order, each under a name of its own.

    Args:
        source: schema of the rows that go in.
        links: the steps, in order.

    Attributes:
        items: in order.
        outputs: names of what comes out; a source column's is its own.
        tests: how many of the items there are up to the last predicate; 0 without one.
        source: as given.

    Raises:
        Refused: something has no form in a kernel.

    Example:
        >>> from headwater.ops.expressions import col
        >>> steps = Compute((("y", col("x") + 1, pa.int64()), ("x", col("x"), pa.int64()))), Keep(col("y") > 0)
        >>> layout = Layout(pa.schema({"x": pa.int64(), "z": pa.int64()}), steps)
        >>> layout.tests, layout.read, len(layout.items)
        (2, frozenset({'x'}), 2)
    """

    def __init__(self, source: pa.Schema, links: Sequence[Link]):
        self.source = source
        items: list[Item] = []
        now = {name: name for name in source.names}
        for number, link in enumerate(links):
            if isinstance(link, Keep):
                items.append(Item("", _renamed(link.predicate, now), pa.bool_()))
                continue
            new = {}
            for name, expr, type in link.columns:
                if isinstance(expr, Column):
                    new[name] = now[expr.name]
                    continue
                new[name] = f"{name}\0{number}"
                items.append(Item(new[name], _renamed(expr, now), type))
            now = new
        self.items = _with_risks(items, source)
        self.outputs = list(now.values())
        self.tests = max((place + 1 for place, item in enumerate(items) if not item.name), default=0)

    @cached_property
    def computed(self) -> dict[str, Item]:
        """Values by their names."""
        return {item.name: item for item in self.items if item.name}

    @cached_property
    def read(self) -> frozenset[str]:
        """Source columns that are read anywhere."""
        named = {name for item in self.items for name in item.expr.columns()} | set(self.outputs)
        return frozenset(name for name in named if name not in self.computed)

    @cached_property
    def unmoved(self) -> list[str]:
        """Columns that only predicates read."""
        moved = self.needed(self.outputs)
        return [name for name in self.source.names if name in self.read and name not in moved]

    @cached_property
    def parts(self) -> list[tuple[str, ...]]:
        """Results that one kernel each computes; the first looks out for failures."""
        every = frozenset(self.source.names)
        waiting = [tuple(dict.fromkeys(self.outputs))]
        done: list[tuple[str, ...]] = []
        while waiting:
            part = waiting.pop(0)
            try:
                if len(part) > RESULTS:
                    raise TooManyError("results")
                self.program("kept" if self.tests else "all", part, every, not done)
                done.append(part)
            except TooManyError:
                if len(part) < 2:
                    raise
                waiting = [part[: len(part) // 2], part[len(part) // 2 :], *waiting]
        return done

    def needed(self, names: Sequence[str]) -> set[str]:
        """Return names, and those that these are computed from."""
        needed = set(names)
        for item in reversed(self.items):
            if item.name in needed:
                needed |= item.expr.columns()
        return needed

    def watches(self, part: tuple[str, ...]) -> bool:
        """Whether the kernel of a part tells of failures of all values behind the last predicate."""
        return part == self.parts[0] and any(item.risky for item in self.items[self.tests :])

    def program(
        self, form: str, names: tuple[str, ...], nullable: frozenset[str], watches: bool = True
    ) -> Program:
        """Return a kernel, written at the first use.

        Args:
            form: "mask", or of "kept" or "all" rows.
            names: of the results.
            nullable: source columns that come with a validity.
            watches: whether it tells of failures of all values behind the last predicate, not only of those it
                needs.
        """
        return _written(self._key, form, names, nullable, watches)

    @cached_property
    def _key(self) -> _Key:
        return _Key(self)


def _renamed(expr: Expr, now: dict[str, str]) -> Expr:
    changed = {name: Column(now[name]) for name in expr.columns() if now[name] != name}
    return substitute(expr, changed) if changed else expr


def _with_risks(items: list[Item], source: pa.Schema) -> list[Item]:
    """Find out which items may raise, by lowering them: what is converted on the way may fail too."""
    emit = Emitter(source, frozenset(source.names))
    found = []
    for item in items:
        emit.fails = False
        term = output(emit, item.expr, item.type)
        if item.name:
            emit.bound[item.name] = term
        found.append(Item(item.name, item.expr, item.type, emit.fails or may_raise(item.expr)))
    return found


class _Key:
    """A layout that is equal to others of the same text."""

    def __init__(self, layout: Layout):
        self.layout = layout
        fields = tuple((field.name, str(field.type)) for field in layout.source)
        items = tuple((item.name, item.expr.token, str(item.type)) for item in layout.items)
        self._key = (fields, items)
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash


@lru_cache(maxsize=256)
def _written(
    key: _Key, form: str, names: tuple[str, ...], nullable: frozenset[str], watches: bool
) -> Program:
    layout = key.layout
    items, tests = layout.items, layout.tests
    emit = Emitter(layout.source, nullable)
    if form == "mask":
        return _mask(emit, layout)
    needed = layout.needed([*names, *(item.name for item in items[tests:] if item.risky and watches)])
    for place, item in enumerate(items):
        emit.guard = "true" if place >= tests else "false"  # the mask's kernel has seen what failed before
        if item.name in needed:
            emit.bound[item.name] = output(emit, item.expr, item.type)
    terms = tuple(emit.bound[name] if name in emit.bound else emit.passing(name) for name in names)
    return over_kept(emit, terms) if form == "kept" else over_rows(emit, terms)


def _mask(emit: Emitter, layout: Layout) -> Program:
    items = layout.items[: layout.tests]
    needed = layout.needed([name for item in items if not item.name for name in item.expr.columns()])
    kept = "true"
    for item in items:
        emit.guard = kept
        if not item.name:
            term = output(emit, item.expr, item.type)
            kept = emit.every([kept, term.valid, term.value])
        elif item.name in needed or item.risky:
            emit.bound[item.name] = output(emit, item.expr, item.type)
    return mask_of(emit, kept)
