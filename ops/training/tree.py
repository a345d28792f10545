"""Trees of arrays as one flat vector: nested dicts, lists and tuples, packed, and seen again as views."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import ParameterError, TypeMismatchError
from ..backend import Array, array_namespace


@dataclass(frozen=True)
class TreeSpec:
    """How a tree lies in a flat vector; leaves one after another, in the order in which they were made.

    Attributes:
        text: the tree as JSON: ``{"d": [[key, …], …]}`` is a dict, ``{"l": […]}`` a list, ``{"t": […]}`` a
            tuple and ``{"a": shape}`` a leaf.
        dtype: of the vector and all leaves.
        names: of the leaves, such as "layers.0.weight".
        shapes: of the leaves.
        bounds: where leaf i begins, and at last the size of the vector.
    """

    text: str
    dtype: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    bounds: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements of the vector."""
        return self.bounds[-1]

    def places(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """Give the name, shape and place in the vector of each leaf."""
        for i, (name, shape) in enumerate(zip(self.names, self.shapes)):
            yield name, shape, slice(self.bounds[i], self.bounds[i + 1])


def spec_of(tree: Any, dtype: str, what: str = "init") -> TreeSpec:
    """Describe how a tree would be packed.

    Args:
        tree: nested dicts with text keys, lists and tuples of arrays of numbers.
        dtype: of the vector, "float32" or "float64".
        what: gave the tree; for errors.

    Raises:
        TypeMismatchError: a leaf isn't an array of numbers, a key isn't a text, or there is no leaf.

    Example:
        >>> spec = spec_of({"layers": [{"weight": np.zeros((2, 3))}], "bias": np.zeros(3)}, "float32")
        >>> spec.names, spec.bounds
        (('layers.0.weight', 'bias'), (0, 6, 9))
    """
    text = json.dumps(_describe(tree, "", what), separators=(",", ":"))
    spec = load_spec(text, dtype)
    if not spec.names:
        raise TypeMismatchError(
            f"{what} returned no arrays: return a dict such as {{'weights': np.zeros(3)}}."
        )
    return spec


@functools.lru_cache(maxsize=64)
def load_spec(text: str, dtype: str) -> TreeSpec:
    """Return the spec that has this `TreeSpec.text`."""
    found: list[tuple[str, tuple[int, ...]]] = []
    _walk(_parsed(text), "", found)
    bounds = [0]
    for _, shape in found:
        bounds.append(bounds[-1] + math.prod(shape))
    names = tuple(name for name, _ in found)
    return TreeSpec(text, dtype, names, tuple(shape for _, shape in found), tuple(bounds))


def pack(
    tree: Any, spec: TreeSpec, what: str = "init", out: Array | None = None, scale: float = 1.0
) -> Array:
    """Write a tree's leaves into a flat vector.

    Args:
        tree: of the structure and shapes of the spec; keys of dicts in any order.
        spec: how it lies in the vector.
        what: gave the tree; for errors.
        out: shape (spec.size,), to add ``scale * tree`` to; None makes a new vector of that.
        scale: a factor.

    Returns:
        The vector, of ``spec.dtype``.

    Raises:
        TypeMismatchError: another structure, or a leaf that isn't of numbers.
        ParameterError: a leaf of another shape. Both name the leaf.

    Example:
        >>> spec = spec_of({"a": np.zeros(2), "b": np.zeros(1)}, "float64")
        >>> pack({"b": np.array([3.0]), "a": np.array([1.0, 2.0])}, spec).tolist()
        [1.0, 2.0, 3.0]
    """
    xp = array_namespace()
    leaves = _flatten(tree, spec, what)
    fresh = out is None
    vector = xp.empty(spec.size, spec.dtype) if out is None else out
    for leaf, (name, shape, where) in zip(leaves, spec.places()):
        array = _number(leaf, name, what, xp)
        if tuple(array.shape) != shape:
            raise ParameterError(
                f"{what} gave {name!r} with the shape {tuple(array.shape)}, where the parameters have {shape}. "
                "Shapes don't change during training."
            )
        place = vector[where].reshape(shape)
        if scale != 1.0:
            array = xp.multiply(array, scale, out=place if fresh else None, casting="same_kind")
        if not fresh:
            place += array.astype(spec.dtype, copy=False)
        elif scale == 1.0:
            place[...] = array
    return vector


def unpack(vector: Array, spec: TreeSpec, writable: bool = True) -> Any:
    """See a flat vector as its tree; leaves are views, nothing is copied.

    Args:
        vector: shape (spec.size,).
        spec: of the tree.
        writable: False makes NumPy's views read-only.

    Example:
        >>> spec = spec_of([np.zeros((1, 2)), np.zeros(1)], "float64")
        >>> unpack(np.arange(3.0), spec)
        [array([[0., 1.]]), array([2.])]
    """
    views = iter(leaves(vector, spec, writable).values())
    return _build(_parsed(spec.text), views)


def leaves(vector: Array, spec: TreeSpec, writable: bool = True) -> dict[str, Array]:
    """See a flat vector as a flat dict of its leaves by name, as views."""
    if not writable and hasattr(vector, "setflags"):
        vector = vector.view()
        vector.setflags(write=False)
    return {name: vector[where].reshape(shape) for name, shape, where in spec.places()}


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return json.loads(text)


def _number(leaf: Any, name: str, what: str, xp: ModuleType) -> Array:
    array = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else np.asarray(leaf)
    if getattr(array.dtype, "kind", "?") not in "fiu":
        raise TypeMismatchError(
            f"{what} gave {name!r} as {array.dtype} ({type(leaf).__name__}), where an array of floats belongs."
        )
    return xp.asarray(array)


def _describe(tree: Any, name: str, what: str) -> Any:
    if isinstance(tree, Mapping):
        for key in tree:
            if not isinstance(key, str) or not key:
                raise TypeMismatchError(
                    f"{what} gave a dict with the key {key!r} at {name or 'the top'!r}: keys are texts."
                )
        return {"d": [[key, _describe(value, _join(name, key), what)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "l" if isinstance(tree, list) else "t"
        return {kind: [_describe(value, _join(name, str(i)), what) for i, value in enumerate(tree)]}
    return {"a": list(_number(tree, name, what, array_namespace()).shape)}


def _walk(node: Any, name: str, found: list[tuple[str, tuple[int, ...]]]) -> None:
    ((kind, value),) = node.items()
    if kind == "a":
        found.append((name, tuple(value)))
    elif kind == "d":
        for key, inner in value:
            _walk(inner, _join(name, key), found)
    else:
        for i, inner in enumerate(value):
            _walk(inner, _join(name, str(i)), found)


def _build(node: Any, views: Iterator[Array]) -> Any:
    ((kind, value),) = node.items()
    if kind == "a":
        return next(views)
    if kind == "d":
        return {key: _build(inner, views) for key, inner in value}
    built = [_build(inner, views) for inner in value]
    return built if kind == "l" else tuple(built)


def _flatten(tree: Any, spec: TreeSpec, what: str) -> Sequence[Any]:
    found: list[Any] = []
    _collect(_parsed(spec.text), tree, "", what, found)
    return found


def _collect(node: Any, tree: Any, name: str, what: str, found: list[Any]) -> None:
    ((kind, value),) = node.items()
    if kind == "a":
        if isinstance(tree, Mapping | list | tuple) or tree is None:
            raise _differs(what, name, f"a {type(tree).__name__}", "an array")
        found.append(tree)
    elif kind == "d":
        keys = [key for key, _ in value]
        if not isinstance(tree, Mapping):
            raise _differs(what, name, f"a {type(tree).__name__}", f"a dict with {keys}")
        if set(tree) != set(keys):
            raise _differs(what, name, f"a dict with {list(tree)}", f"one with {keys}")
        for key, inner in value:
            _collect(inner, tree[key], _join(name, key), what, found)
    else:
        if not isinstance(tree, list | tuple) or len(tree) != len(value):
            got = f"{len(tree)} items" if isinstance(tree, list | tuple) else f"a {type(tree).__name__}"
            raise _differs(what, name, got, f"a {'list' if kind == 'l' else 'tuple'} of {len(value)}")
        for i, inner in enumerate(value):
            _collect(inner, tree[i], _join(name, str(i)), what, found)


def _differs(what: str, name: str, got: str, expected: str) -> TypeMismatchError:
    return TypeMismatchError(
        f"{what} gave {got} at {name or 'the top'!r}, where the parameters have {expected}. Gradients have the "
        "structure of the parameters that init returned."
    )


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
