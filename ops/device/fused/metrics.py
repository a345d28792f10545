"""Metrics in a kernel: what a target and a prediction contribute; rows that lack one are an error, as on the host."""

from __future__ import annotations

import pyarrow as pa

from ...expressions.call import Call
from .emitter import Emitter, Term, refuse, rule


def _present(emit: Emitter, *args: Term) -> None:
    for arg in args:
        if arg.valid != "true":
            emit.fail(emit.let("bool", f"!{arg.valid}") if arg.valid != "false" else "true")
        if pa.types.is_floating(arg.type):
            emit.fail(emit.every([arg.valid, emit.let("bool", f"{arg.value} != {arg.value}")]))


def _binary(emit: Emitter, target: Term) -> None:
    emit.fail(emit.let("bool", f"{target.value} != 0 && {target.value} != 1"))


def _probability(emit: Emitter, score: Term) -> None:
    emit.fail(emit.let("bool", f"{score.value} < 0 || {score.value} > 1"))


@rule("metrics.squared_error", "metrics.absolute_error", "metrics.brier", "metrics.log_loss")
def _of_numbers(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    target, score = args
    refuse(any(not pa.types.is_float64(arg.type) for arg in args), "lists are scored on the host")
    _present(emit, *args)
    if call.function in ("metrics.brier", "metrics.log_loss"):
        _binary(emit, target)
        _probability(emit, score)
    if call.function == "metrics.log_loss":
        likely = emit.let("double", f"{target.value} == 1 ? {score.value} : 1 - {score.value}")
        small = 2.0**-52
        return emit.term(type, f"-log(fmin(fmax({likely}, {small!r}), {1 - small!r}))")
    difference = emit.let("double", f"{target.value} - {score.value}")
    if call.function == "metrics.absolute_error":
        return emit.term(type, f"fabs({difference})")
    return emit.term(type, f"{difference} * {difference}")


@rule("metrics.correct", "metrics.indicator")
def _of_labels(emit: Emitter, call: Call, args: list[Term], type: pa.DataType) -> Term:
    a, b = emit.together(args, ascending=False) if pa.types.is_string(args[0].type) else args
    _present(emit, a)
    if call.function == "metrics.correct":
        _present(emit, b)
    else:
        refuse(b.scalar is None, "the positive label is a constant")
        assert b.scalar is not None
        if b.type == pa.int8() or b.scalar.as_py() == 1:
            _binary(emit, a)
    return emit.term(type, f"(long long)({a.value} == {b.value})", emit.every([a.valid, b.valid]))
