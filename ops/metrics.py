"""Metrics: how good predictions are, as aggregations over two columns, for ``agg`` and ``group_by(...).agg``.

They are exact, whatever the number of partitions, and agree with scikit-learn's where it gives a number. Where a metric
isn't defined (no rows, one class only) it is null. A row without a target or a prediction is an error.

Example:
    >>> import headwater as hw
    >>> scored = hw.from_arrow({"tipped": [0, 1, 1, 0], "score": [0.1, 0.8, 0.4, 0.4]})
    >>> report = scored.agg(auc=hw.metrics.auc("tipped", "score"), rows=hw.count())
    >>> report.compute(hw.Session("inline")).to_pydict()
    {'auc': [0.875], 'rows': [4]}
"""

from __future__ import annotations

from typing import Any

from ..errors import ParameterError, TypeMismatchError
from .expressions.call import call
from .expressions.expr import AggregateCall, Column, Expr
from .expressions.functions import when
from .expressions.literals import lit

__all__ = ["accuracy", "auc", "brier", "f1", "log_loss", "mae", "precision", "r2", "recall", "rmse"]


def auc(target: str | Expr, score: str | Expr) -> Expr:
    """The area under the ROC curve, exact, equal scores counting half; null if all rows are of one class.

    It needs the distinct scores of a group in the memory of one task, 24 bytes each. For more than some hundred million
    of them round the score first, as ``auc("tipped", col("score").round(5))``.

    Args:
        target: 0 or 1, or a boolean.
        score: any number, higher for rows that are more likely positive.

    Returns:
        An aggregation, float64, 0 to 1, named ``auc``.

    Raises:
        HeadwaterError: at run time, a target that is neither 0 nor 1, or a row without target or score.

    Example:
        >>> import headwater as hw
        >>> rows = hw.from_arrow({"y": [True, False], "score": [2.0, -1.0]})
        >>> rows.agg(auc("y", "score")).compute(hw.Session("inline")).to_pydict()
        {'auc': [1.0]}
    """
    return AggregateCall("auc", (_call("ranked", "auc", target, score),)).alias("auc")


def log_loss(target: str | Expr, score: str | Expr) -> Expr:
    """The mean of minus the logarithm of the probability given to the right class, with probabilities cut at 2.2e-16.

    Args:
        target: 0 or 1, or a boolean; or the number of the class, where ``score`` has one value for each class.
        score: the probability of 1, or a list with the probability of each class.

    Returns:
        An aggregation, float64, 0 or more, named ``log_loss``.
    """
    return _mean("log_loss", "log_loss", target, score)


def brier(target: str | Expr, score: str | Expr) -> Expr:
    """The Brier score: the mean squared difference between a class, 0 or 1, and its probability.

    Args:
        target: 0 or 1, or a boolean.
        score: the probability of 1.

    Returns:
        An aggregation, float64, 0 to 1, named ``brier``.
    """
    return _mean("brier", "brier", target, score)


def accuracy(target: str | Expr, prediction: str | Expr) -> Expr:
    """The share of rows whose predicted label is the right one.

    Args:
        target: a label: number, string or boolean.
        prediction: a label of the same kind; of a score write ``col("score") > 0.5``.

    Returns:
        An aggregation, float64, 0 to 1, named ``accuracy``.
    """
    return _mean("accuracy", "correct", target, prediction)


def precision(target: str | Expr, prediction: str | Expr, positive: Any = 1) -> Expr:
    """The share of rows predicted positive that are positive; null if none is predicted so.

    Args:
        target: a label; 0 or 1, or a boolean, unless ``positive`` says otherwise.
        prediction: a label of the same kind; of a score write ``col("score") > 0.5``.
        positive: the label that counts as positive.

    Returns:
        An aggregation, float64, 0 to 1, named ``precision``.
    """
    hits, _, predicted = _outcomes("precision", target, prediction, positive)
    return _ratio(hits, predicted).alias("precision")


def recall(target: str | Expr, prediction: str | Expr, positive: Any = 1) -> Expr:
    """The share of positive rows that are predicted so; null if no row is positive.

    Args:
        target, prediction, positive: as for `precision`.

    Returns:
        An aggregation, float64, 0 to 1, named ``recall``.
    """
    hits, actual, _ = _outcomes("recall", target, prediction, positive)
    return _ratio(hits, actual).alias("recall")


def f1(target: str | Expr, prediction: str | Expr, positive: Any = 1) -> Expr:
    """The harmonic mean of precision and recall; null if no row is positive and none predicted so.

    Args:
        target, prediction, positive: as for `precision`.

    Returns:
        An aggregation, float64, 0 to 1, named ``f1``.
    """
    hits, actual, predicted = _outcomes("f1", target, prediction, positive)
    return _ratio(hits * 2, actual + predicted).alias("f1")


def rmse(target: str | Expr, prediction: str | Expr) -> Expr:
    """The root of the mean squared error.

    Args:
        target, prediction: numbers.

    Returns:
        An aggregation, float64, 0 or more, in the target's unit, named ``rmse``.
    """
    return _call("squared_error", "rmse", target, prediction).mean().sqrt().alias("rmse")


def mae(target: str | Expr, prediction: str | Expr) -> Expr:
    """The mean absolute error.

    Args:
        target, prediction: numbers.

    Returns:
        An aggregation, float64, 0 or more, in the target's unit, named ``mae``.
    """
    return _mean("mae", "absolute_error", target, prediction)


def r2(target: str | Expr, prediction: str | Expr) -> Expr:
    """The share of the target's variance that the prediction explains, at most 1; null for less than two rows.

    For a target that is the same in all rows it is 1 if all predictions are exact, else 0, as scikit-learn's.

    Args:
        target, prediction: numbers.

    Returns:
        An aggregation, float64, named ``r2``.
    """
    error = _call("squared_error", "r2", target, prediction).mean()
    truth = _expression(target, "r2").cast("float64")
    spread, rows = truth.var(ddof=0), truth.count()
    constant = when(error == 0).then(1.0).otherwise(0.0)
    value = when(spread > 0).then(1.0 - error / spread).otherwise(constant)
    return when(rows >= 2).then(value).alias("r2")


def _expression(value: str | Expr, metric: str) -> Expr:
    if not isinstance(value, str | Expr):
        raise TypeMismatchError(
            f"metrics.{metric}() takes column names or expressions, not {value!r} ({type(value).__name__}). "
            f"Write metrics.{metric}('target', 'score')."
        )
    expr = Column(value) if isinstance(value, str) else value
    if any(isinstance(part, AggregateCall) for part in expr.walk()):
        raise ParameterError(
            f"metrics.{metric}() takes values of rows, and {expr} is an aggregation already. Give the column itself."
        )
    return expr


def _call(kernel: str, metric: str, target: str | Expr, prediction: str | Expr) -> Expr:
    pair = _expression(target, metric), _expression(prediction, metric)
    return call(f"metrics.{kernel}", *pair, where=_where(metric, pair))


def _where(metric: str, pair: tuple[Expr, Expr]) -> str:
    texts = [repr(expr.name) if isinstance(expr, Column) else str(expr) for expr in pair]
    return f"metrics.{metric}({', '.join(texts)})"


def _mean(metric: str, kernel: str, target: str | Expr, prediction: str | Expr) -> Expr:
    return _call(kernel, metric, target, prediction).mean().alias(metric)


def _outcomes(
    metric: str, target: str | Expr, prediction: str | Expr, positive: Any
) -> tuple[Expr, Expr, Expr]:
    """How many rows are positive and predicted so; positive; predicted so."""
    pair = _expression(target, metric), _expression(prediction, metric)
    where = _where(metric, pair)
    label = lit(int(positive) if isinstance(positive, bool) else positive)
    actual, predicted = (
        call("metrics.indicator", expr, label, where=where, name=name)
        for expr, name in zip(pair, ("target", "prediction"))
    )
    return (actual * predicted).sum(), actual.sum(), predicted.sum()


def _ratio(part: Expr, whole: Expr) -> Expr:
    return when(whole > 0).then(part / whole)
