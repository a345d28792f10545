"""AGGREGATIONS: each aggregation as one declared record of mergeable state, as in flox.

``partial`` reduces rows to a state for each group, ``merge`` reduces states to states, ``finish``
turns states into the answer. States merge in row order, so ``first`` and ``last`` need no position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ParameterError, TypeMismatchError, did_you_mean
from . import quantiles, ranking, reductions
from .grouping import Groups, comparable

Options = dict[str, Any]
State = tuple[pa.Array, ...]


@dataclass(frozen=True)
class AggregateFunction:
    """How one aggregation is typed and computed.

    Attributes:
        output: the output type over an input type, None if it can't take that type.
        state: (part, type) of the state's columns over an input type.
        partial: state of each group from its rows and the options; the column is None for a count of rows.
        merge: state of each group from states of its parts, in order.
        finish: the answer of each group from its state.
        takes: what the input may be, in words, for errors.
        nothing: the answer for no rows at all.
        options: the options there may be, by name, and what refuses wrong values of them.
        state_options: those that the state depends on; aggregations that differ in others share one state.
        shaped: the output type, given the one that ``output`` says and the options.
    """

    output: Callable[[pa.DataType], pa.DataType | None]
    state: Callable[[pa.DataType], tuple[tuple[str, pa.DataType], ...]]
    partial: Callable[[Groups, pa.Array, Options], State]
    merge: Callable[[Groups, State], State]
    finish: Callable[[State, Options], pa.Array]
    takes: str = "any column"
    nothing: int | None = None
    options: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    state_options: tuple[str, ...] = ()
    shaped: Callable[[pa.DataType, Options], pa.DataType] = lambda type, options: type

    @property
    def parts(self) -> int:
        """How many columns the state has."""
        return len(self.state(pa.null()))


def aggregation_type(function: str, type: pa.DataType | None, options: dict[str, Any]) -> pa.DataType:
    """Return the output type of an aggregation over a column type.

    Args:
        function: name of a record in AGGREGATIONS.
        type: the column's type; None for a count of rows.
        options: ``ddof`` for var and std; ``q`` and ``accuracy`` for approx_quantile.

    Raises:
        ParameterError: unknown function or option.
        TypeMismatchError: the function can't take that type.

    Example:
        >>> aggregation_type("sum", pa.int8(), {})
        DataType(int64)
    """
    if function not in AGGREGATIONS:
        raise ParameterError(f"there is no aggregation {function!r}. {did_you_mean(function, AGGREGATIONS)}")
    record = AGGREGATIONS[function]
    for option, value in options.items():
        if option not in record.options:
            raise ParameterError(f"{function}({option}=...): {did_you_mean(option, record.options)}")
        record.options[option](value)
    if type is None and function != "count":
        raise ParameterError(f"{function}() needs a column, as col('x').{function}().")
    result = pa.int64() if type is None else record.output(type)
    if result is None:
        raise TypeMismatchError(
            f"{function} takes {record.takes}, and this is {type}. Cast it first, as "
            f"col('x').cast('float64').{function}(), or use count, n_unique, first or last."
        )
    return record.shaped(result, options)


def _is_number(type: pa.DataType) -> bool:
    return (
        pa.types.is_integer(type)
        or pa.types.is_floating(type)
        or pa.types.is_decimal(type)
        or pa.types.is_boolean(type)
    )


def _float_of_numbers(type: pa.DataType) -> pa.DataType | None:
    return pa.float64() if _is_number(type) else None


def _ordered(type: pa.DataType) -> pa.DataType | None:
    return None if pa.types.is_nested(type) or pa.types.is_interval(type) else type


def _same(type: pa.DataType) -> pa.DataType:
    return type


def _integer(type: pa.DataType) -> pa.DataType:
    return pa.int64()


def _one(part: str, output: Callable[[pa.DataType], pa.DataType | None]) -> Callable[[pa.DataType], Any]:
    return lambda type: ((part, output(type)),)


def _first_part(state: State, options: Options) -> pa.Array:
    return state[0]


def _plain(reduce: Callable[[Groups, pa.Array], State]) -> Callable[[Groups, pa.Array, Options], State]:
    """A reduction of rows that has no options."""
    return lambda groups, column, options: reduce(groups, column)


def _extreme(largest: bool) -> AggregateFunction:
    def reduce(groups: Groups, column: pa.Array) -> State:
        return (reductions.extreme(groups, column, largest),)

    return AggregateFunction(
        _ordered,
        _one("max" if largest else "min", _same),
        _plain(reduce),
        lambda groups, state: reduce(groups, state[0]),
        _first_part,
        "a column with an order (number, string, date, boolean, ...)",
    )


def _at(rows: Callable[[Groups], np.ndarray], part: str) -> AggregateFunction:
    def reduce(groups: Groups, column: pa.Array) -> State:
        return (reductions.pick(column, rows(groups)),)

    return AggregateFunction(
        _same, _one(part, _same), _plain(reduce), lambda groups, state: reduce(groups, state[0]), _first_part
    )


def _sum(groups: Groups, column: pa.Array) -> State:
    return (reductions.add(groups, column),)


def _count(groups: Groups, column: pa.Array | None) -> State:
    if column is None:
        return (pa.array(np.bincount(groups.codes, minlength=groups.count)),)
    return (pa.array(reductions.count_valid(groups, column)),)


def _merge_count(groups: Groups, state: State) -> State:
    return (reductions.add(groups, state[0]).fill_null(0),)


def _mean_state(type: pa.DataType) -> tuple[tuple[str, pa.DataType], ...]:
    total = reductions.sum_type(type) if pa.types.is_decimal(type) else pa.float64()
    return (("sum", total), ("count", pa.int64()))


def _mean(groups: Groups, column: pa.Array) -> State:
    if pa.types.is_decimal(column.type):
        return (*_sum(groups, column), *_count(groups, column))
    return (pa.array(reductions.add_floats(groups, column)), *_count(groups, column))


def _merge_mean(groups: Groups, state: State) -> State:
    return (*_sum(groups, state[0]), *_merge_count(groups, state[1:]))


def _finish_mean(state: State, options: Options) -> pa.Array:
    count = state[1].to_numpy(zero_copy_only=False)
    total = state[0].cast(pa.float64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False)
    return pa.array(np.divide(total, count, out=np.zeros(len(count)), where=count > 0), mask=count == 0)


def _moments_state(type: pa.DataType) -> tuple[tuple[str, pa.DataType], ...]:
    return (("count", pa.float64()), ("mean", pa.float64()), ("m2", pa.float64()))


def _moments(groups: Groups, column: pa.Array) -> State:
    return tuple(pa.array(part) for part in reductions.moments(groups, column))


def _merge_moments(groups: Groups, state: State) -> State:
    parts = (part.to_numpy(zero_copy_only=False) for part in state)
    return tuple(pa.array(part) for part in reductions.merge_moments(groups, *parts))


def _finish_variance(state: State, options: Options, root: bool) -> pa.Array:
    count, _, squares = (part.to_numpy(zero_copy_only=False) for part in state)
    freedom = count - options.get("ddof", 1)
    variance = np.divide(squares, freedom, out=np.zeros(len(count)), where=freedom > 0)
    return pa.array(np.sqrt(variance) if root else variance, mask=freedom <= 0)


def _variance(root: bool) -> AggregateFunction:
    finish = partial(_finish_variance, root=root)
    return AggregateFunction(
        _float_of_numbers,
        _moments_state,
        _plain(_moments),
        _merge_moments,
        finish,
        "numbers",
        options={"ddof": partial(_check_ddof, "std" if root else "var")},
    )


def _check_ddof(function: str, ddof: Any) -> None:
    if not isinstance(ddof, int) or ddof < 0:
        raise ParameterError(f"{function}(ddof={ddof!r}): give a whole number, 0 or more; 1 is the sample's.")


def _distinct(groups: Groups, column: pa.Array) -> State:
    same = comparable(column)
    return (reductions.distinct_lists(groups, same if same.type == column.type else same.cast(column.type)),)


def _merge_distinct(groups: Groups, state: State) -> State:
    return (reductions.merge_lists(groups, state[0]),)


def _finish_distinct(state: State, options: Options) -> pa.Array:
    return pc.list_value_length(state[0]).cast(pa.int64())


#: every aggregation by name
#:
#: sum: of nothing is null; float64 for floats, 64 bits for integers, 38 digits for decimals
#: mean: float64, also of decimals
#: var, std: with ``ddof`` (1); null where count <= ddof
#: min, max: NaN is the largest number, as in sort: max is NaN if any is, min only if all are
#: count: of non-null values, or of rows; n_unique: exact, of non-null values
#: first, last: in row order, nulls included
#: approx_quantile: the value of rank floor(q * (n - 1)) within a relative ``accuracy``; NaN as in max, q may be a tuple
#: auc: of pairs that `metrics.auc` makes; null where all rows are of one class
AGGREGATIONS: dict[str, AggregateFunction] = {
    "sum": AggregateFunction(
        reductions.sum_type,
        _one("sum", reductions.sum_type),
        _plain(_sum),
        lambda groups, state: _sum(groups, state[0]),
        _first_part,
        "numbers or durations",
    ),
    "mean": AggregateFunction(
        _float_of_numbers, _mean_state, _plain(_mean), _merge_mean, _finish_mean, "numbers"
    ),
    "var": _variance(root=False),
    "std": _variance(root=True),
    "min": _extreme(largest=False),
    "max": _extreme(largest=True),
    "count": AggregateFunction(
        _integer, _one("count", _integer), _plain(_count), _merge_count, _first_part, nothing=0
    ),
    "n_unique": AggregateFunction(
        _integer,
        lambda type: (("values", pa.list_(type)),),
        _plain(_distinct),
        _merge_distinct,
        _finish_distinct,
        nothing=0,
    ),
    "first": _at(lambda groups: groups.first_rows, "first"),
    "last": _at(lambda groups: groups.last_rows, "last"),
    "auc": AggregateFunction(
        ranking.output_type,
        ranking.state_fields,
        _plain(ranking.count_scores),
        ranking.merge_scores,
        ranking.area,
        "a target and a score, as hw.metrics.auc('target', 'score')",
    ),
    "approx_quantile": AggregateFunction(
        quantiles.quantile_type,
        quantiles.state_fields,
        quantiles.count_buckets,
        quantiles.merge_counts,
        quantiles.quantiles,
        "numbers or durations, which have a distance from zero (of times take the duration since one of them)",
        options={"q": quantiles.check_q, "accuracy": quantiles.check_accuracy},
        state_options=("accuracy",),
        shaped=quantiles.quantile_types,
    ),
}
