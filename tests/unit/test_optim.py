"""Optimizers against PyTorch and the papers' formulas, bits in slices, and what both refuse."""

from __future__ import annotations

import itertools
import pickle

import cloudpickle
import numpy as np
import pytest
import torch

import headwater as hw
from headwater.errors import ParameterError, TypeMismatchError
from headwater.lineage.keys import lineage_key
from headwater.ops.optim import norms, parts

optim = hw.optim
SCHEDULE = optim.warmup(3, then=optim.cosine(0.05, steps=20))

ELEMENTWISE = {
    "sgd": optim.sgd(0.1),
    "sgd with l2": optim.sgd(0.1, l2=0.01),
    "momentum": optim.momentum(0.1, 0.8, l2=0.01),
    "nesterov": optim.nesterov(0.1, 0.8, l2=0.01),
    "adagrad": optim.adagrad(0.1, initial=0.1, l2=0.01),
    "adam": optim.adam(0.01, l2=0.01),
    "adamw": optim.adamw(0.01, weight_decay=0.1),
    "lion": optim.lion(0.01, weight_decay=0.1),
    "a schedule": optim.adam(SCHEDULE),
    "clipped values": optim.chain(
        optim.clip_by_value(0.5), optim.l2(0.1), optim.weight_decay(0.1), optim.adam(0.01)
    ),
    "a user's": optim.Optimizer(
        "sign",
        lambda params: {},
        lambda grads, state, params, step: ({n: params[n] - 0.5 * np.sign(grads[n]) for n in params}, state),
        elementwise=True,
    ),
}
WHOLE = {
    "lamb": optim.lamb(0.01, weight_decay=0.1),
    "clipped norm": optim.chain(optim.clip_by_global_norm(1.0), optim.momentum(0.1)),
    "clipped user's": optim.chain(optim.l2(0.1), optim.clip_by_global_norm(1.0), ELEMENTWISE["a user's"]),
}
ALL = ELEMENTWISE | WHOLE


def of(table):
    return pytest.mark.parametrize("optimizer", table.values(), ids=table.keys())


def problem(steps, dtype, shapes={"w": (40, 30), "b": (30,), "one": ()}, seed=0):  # noqa: B006
    rng = np.random.default_rng(seed)

    def draw():
        return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}

    return draw(), [draw() for _ in range(steps)]


def descend(optimizer, params, grads, first=0):
    """The parameters and the state after some steps; what it was given stays as it is."""
    params = {name: array.copy() for name, array in params.items()}
    state = optimizer.init(params)
    for step, grad in enumerate(grads, first):
        params, state = optimizer.update(grad, state, params, step)
    return params, state


TORCH = {
    "sgd": (ELEMENTWISE["sgd"], lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd with l2": (ELEMENTWISE["sgd with l2"], lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01)),
    "momentum": (
        ELEMENTWISE["momentum"],
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.01),
    ),
    "nesterov": (
        ELEMENTWISE["nesterov"],
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.01, nesterov=True),
    ),
    "adagrad": (
        ELEMENTWISE["adagrad"],
        lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1, weight_decay=0.01),
    ),
    "adagrad's defaults": (optim.adagrad(), lambda p: torch.optim.Adagrad(p)),
    "adam": (ELEMENTWISE["adam"], lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01)),
    "adam's defaults": (optim.adam(), lambda p: torch.optim.Adam(p)),
    "adam, large eps": (
        optim.adam(0.1, betas=(0.5, 0.7), eps=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.7), eps=0.1),
    ),
    "adamw": (ELEMENTWISE["adamw"], lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
    "adamw's defaults": (optim.adamw(), lambda p: torch.optim.AdamW(p)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize(("ours", "theirs"), TORCH.values(), ids=TORCH.keys())
def test_steps_are_pytorchs(ours, theirs, dtype, tolerance):
    params, grads = problem(40, dtype)
    tensors = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in params.items()}
    optimizer = theirs(tensors.values())
    for grad in grads:
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(np.array(grad[name]))
        optimizer.step()
    fitted, _ = descend(ours, params, grads)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(fitted[name], tensor.detach().numpy(), rtol=tolerance, atol=tolerance)
        assert np.abs(fitted[name] - params[name]).max() > 100 * tolerance


@pytest.mark.parametrize("bound", [0.5, 1e6])
def test_the_clipped_norm_is_pytorchs(bound):
    params, (grad,) = problem(1, "float64")
    tensors = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in params.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.from_numpy(np.array(grad[name]))
    norm = torch.nn.utils.clip_grad_norm_(tensors.values(), bound)
    assert optim.global_norm(grad) == pytest.approx(norm.item(), rel=1e-14)
    stepped, _ = descend(optim.chain(optim.clip_by_global_norm(bound), optim.sgd(1.0)), params, [grad])
    for name, tensor in tensors.items():
        np.testing.assert_allclose(params[name] - stepped[name], tensor.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_lion_is_its_papers_formula():
    params, grads = problem(20, "float64")
    fitted, state = descend(optim.lion(0.01, betas=(0.8, 0.95), weight_decay=0.1), params, grads)
    for name, expected in params.items():
        mean = np.zeros_like(expected)
        for grad in grads:
            direction = np.sign(0.8 * mean + 0.2 * grad[name])
            expected = expected - 0.01 * (direction + 0.1 * expected)
            mean = 0.95 * mean + 0.05 * grad[name]
        np.testing.assert_allclose(fitted[name], expected, rtol=1e-12)
        np.testing.assert_allclose(state[f"m/{name}"], mean, rtol=1e-10, atol=1e-13)


def test_lion_steps_by_the_sign_alone():
    values = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-30, -3e38], np.float32)
    fitted, _ = descend(optim.lion(0.5, betas=(0.0, 0.0)), {"w": np.zeros(6, np.float32)}, [{"w": values}])
    assert fitted["w"].tolist() == [0.0, 0.0, -0.5, 0.5, -0.5, 0.5]


def test_lamb_is_its_papers_formula():
    params, grads = problem(20, "float64")
    params["zero"] = np.zeros(5)  # a norm of 0 doesn't scale
    grads = [grad | {"zero": np.arange(5.0)} for grad in grads]
    fitted, _ = descend(optim.lamb(0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1), params, grads)
    for name, expected in params.items():
        mean, square = np.zeros_like(expected), np.zeros_like(expected)
        for step, grad in enumerate(grads, 1):
            mean = 0.8 * mean + 0.2 * grad[name]
            square = 0.95 * square + 0.05 * grad[name] ** 2
            ratio = (mean / (1 - 0.8**step)) / (np.sqrt(square / (1 - 0.95**step)) + 1e-3)
            update = ratio + 0.1 * expected
            trust = np.linalg.norm(expected) / np.linalg.norm(update) if np.linalg.norm(expected) else 1.0
            expected = expected - 0.01 * trust * update
        np.testing.assert_allclose(fitted[name], expected, rtol=1e-11, atol=1e-14)


@of(ELEMENTWISE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slices_at_any_boundary_give_the_bits_of_the_whole(optimizer, dtype):
    assert optimizer.elementwise
    size = 2 * parts.BLOCK + 1003
    params, grads = problem(3, dtype, {"": (size,)})
    whole, state = descend(optimizer, params, grads)
    cuts = [0, 1, 4, 11, 37, 4096, 4111, parts.BLOCK - 1, parts.BLOCK + 3, size - 1, size]
    for begin, end in itertools.pairwise(cuts):
        here = slice(begin, end)
        sliced, held = descend(optimizer, {"": params[""][here]}, [{"": grad[""][here]} for grad in grads])
        assert sliced[""].tobytes() == whole[""][here].tobytes()
        assert held.keys() == state.keys()
        for name in state:
            assert held[name].tobytes() == state[name][here].tobytes()


@of(ELEMENTWISE)
def test_one_vector_gives_the_bits_of_its_leaves(optimizer):
    params, grads = problem(3, "float32")

    def flat(arrays):
        return {"": np.concatenate([arrays[name].reshape(-1) for name in ("w", "b", "one")])}

    leaves, _ = descend(optimizer, params, grads)
    vector, _ = descend(optimizer, flat(params), list(map(flat, grads)))
    assert vector[""].tobytes() == flat(leaves)[""].tobytes()


@of(ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_types_and_shapes_stay_and_gradients_are_left_alone(optimizer, dtype):
    params, grads = problem(2, dtype)
    before = pickle.dumps(grads)
    for step in (3, np.int64(3)):
        fitted, state = descend(optimizer, params, grads, first=step)
        assert list(fitted) == list(params)
        for name, array in fitted.items():
            assert (array.dtype, array.shape) == (params[name].dtype, params[name].shape)
            assert not np.array_equal(array, params[name])
        assert {array.dtype for array in state.values()} <= {np.dtype(dtype)}
    assert pickle.dumps(grads) == before


@of(ALL)
def test_arrays_that_are_read_only_or_have_gaps_are_copied(optimizer):
    params, (grad,) = problem(1, "float32", {"w": (6, 8)})
    expected, _ = descend(optimizer, params, [grad])
    frozen = params["w"].copy()
    frozen.flags.writeable = False
    gaps = np.repeat(params["w"], 2, axis=1)[:, ::2]
    for given in (frozen, np.asfortranarray(params["w"]), gaps):
        before = given.copy()
        moved, _ = optimizer.update(
            {"w": np.asfortranarray(grad["w"])}, optimizer.init({"w": given}), {"w": given}, 0
        )
        assert np.array_equal(moved["w"], expected["w"])
        assert np.array_equal(given, before)


@of(ALL)
def test_optimizers_pickle_and_have_a_key(optimizer):
    params, grads = problem(3, "float32")
    copy = pickle.loads(cloudpickle.dumps(optimizer))
    ours, theirs = descend(optimizer, params, grads)[0], descend(copy, params, grads)[0]
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in params)
    assert lineage_key("Train", copy.parameters(), []) == lineage_key("Train", optimizer.parameters(), [])


def test_keys_differ_where_the_numbers_do():
    optimizers = [
        *ALL.values(),
        optim.adam(),
        optim.adam(2e-3),
        optim.adam(eps=1e-7),
        optim.adam(lambda step: 1e-3),
    ]
    optimizers += [
        optim.adam(optim.linear(1e-3, 0.0, 10)),
        optim.adam(optim.linear(1e-3, 0.0, 11)),
        optim.adamw(),
    ]
    optimizers += [
        optim.chain(optim.clip_by_value(1.0), optim.adam()),
        optim.chain(optim.l2(1.0), optim.adam()),
    ]
    keys = {lineage_key("Train", optimizer.parameters(), []) for optimizer in optimizers}
    assert len(keys) == len(optimizers)
    assert len(set(optimizers)) == len(optimizers)


@of({name: optimizer for name, optimizer in ALL.items() if "user" not in name})
def test_the_repr_is_the_call(optimizer):
    names = {name: getattr(optim, name) for name in optim.__all__}
    assert eval(repr(optimizer), names) == optimizer


def test_defaults_are_shown():
    assert repr(optim.adam(optim.constant(0.1))) == (
        "adam(lr=constant(value=0.1), betas=(0.9, 0.999), eps=1e-08, l2=0.0)"
    )
    assert repr(optim.chain(optim.clip_by_global_norm(1), optim.sgd(1))) == (
        "chain(clip_by_global_norm(max_norm=1.0), sgd(lr=1.0, l2=0.0))"
    )


def test_weight_decay_before_adam_is_adamw():
    params, grads = problem(5, "float32")
    one, _ = descend(optim.adamw(SCHEDULE, weight_decay=0.1), params, grads)
    other, _ = descend(optim.chain(optim.weight_decay(0.1), optim.adam(SCHEDULE)), params, grads)
    assert all(one[name].tobytes() == other[name].tobytes() for name in params)


def test_chains_nest_and_run_in_order():
    params, (grad,) = {"w": np.array([1.0])}, [{"w": np.array([30.0])}]
    clip, l2 = optim.clip_by_value(2.0), optim.l2(10.0)
    assert descend(optim.chain(clip, l2, optim.sgd(1.0)), params, [grad])[0]["w"] == -11.0
    assert descend(optim.chain(l2, clip, optim.sgd(1.0)), params, [grad])[0]["w"] == -1.0
    nested = optim.chain(clip, optim.chain(l2, optim.sgd(1.0)))
    assert descend(nested, params, [grad])[0]["w"] == -11.0
    assert nested.elementwise


@of(WHOLE)
def test_what_needs_whole_arrays_says_so(optimizer):
    assert not optimizer.elementwise


def test_a_schedule_sets_the_rate_of_each_step():
    optimizer = optim.sgd(lambda step: np.float64(step))  # NumPy's float64 must not widen float32
    params, _ = descend(optimizer, {"w": np.zeros(1, np.float32)}, [{"w": np.ones(1, np.float32)}] * 4)
    assert params["w"].tolist() == [-6.0]
    assert params["w"].dtype == np.float32
    assert [optimizer.learning_rate(step) for step in (0, 2)] == [0.0, 2.0]
    assert ELEMENTWISE["a user's"].learning_rate(0) is None


@pytest.mark.parametrize(
    "size", [0, 1, 2, 4095, 4096, 4097, 3 * 4096 + 5, norms.CHUNK, 2 * norms.CHUNK + 4097]
)
def test_the_norm_has_one_order_of_additions(size):
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    blocks = [values[at : at + 4096].astype(float) ** 2 for at in range(0, size, 4096)]

    def halves(terms):
        """The sum that the documentation describes, one addition at a time."""
        terms = list(terms)
        width = 1 << max(len(terms) - 1, 0).bit_length()
        terms += [0.0] * (width - len(terms))
        while width > 1:
            width //= 2
            terms = [terms[i] + terms[i + width] for i in range(width)]
        return terms[0]

    padded = [list(block) + [0.0] * (4096 - len(block)) for block in blocks]
    expected = halves([halves(block) for block in padded]) if size else 0.0
    layouts = [
        values,
        np.repeat(values, 3)[::3],
        values[::-1].copy()[::-1],
        np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:].view(np.float32),
    ]
    for layout in layouts:
        assert optim.global_norm({"w": layout}) == np.sqrt(expected)
    if size == 3 * 4096 + 5:
        assert optim.global_norm({"w": values[:-1].reshape(-1, 4)}) == optim.global_norm({"w": values[:-1]})


def test_nan_is_not_hidden():
    for optimizer in ALL.values():
        params, _ = descend(
            optimizer, {"w": np.ones(3, np.float32)}, [{"w": np.array([1, np.nan, 1], np.float32)}]
        )
        assert np.isnan(params["w"][1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: optim.adam(-1), "adam(lr=-1): give a number, 0 or more"),
        (lambda: optim.adam("0.1"), "adam(lr='0.1'): give a number, as 0.001, or a schedule"),
        (lambda: optim.adam(True), "adam(lr=True)"),
        (lambda: optim.adam(float("nan")), "adam(lr=nan)"),
        (lambda: optim.sgd(optim.cosine), "as hw.optim.cosine(0.001, steps=1000)"),
        (lambda: optim.adam(lambda step: "0.1"), "<lambda> at step 0(lr='0.1')"),
        (lambda: optim.adam(betas=0.9), "adam(betas=0.9): give two numbers, as (0.9, 0.999)"),
        (lambda: optim.adamw(betas=(0.9, 1.0)), "adamw(betas[1]=1.0): give a number, 0 or more and below 1"),
        (lambda: optim.lamb(eps=0), "lamb(eps=0): give a number, above 0"),
        (lambda: optim.momentum(0.1, 1.5), "momentum(decay=1.5)"),
        (lambda: optim.nesterov(0.1, None), "nesterov(decay=None)"),
        (lambda: optim.adagrad(initial=-1), "adagrad(initial=-1)"),
        (lambda: optim.lion(weight_decay=[1]), "lion(weight_decay=[1])"),
        (lambda: optim.clip_by_global_norm(0), "clip_by_global_norm(max_norm=0): give a number, above 0"),
        (lambda: optim.clip_by_value(-1), "clip_by_value(limit=-1)"),
        (lambda: optim.l2(-1), "l2(amount=-1)"),
        (lambda: optim.weight_decay("x"), "weight_decay(amount='x')"),
        (lambda: optim.chain(), "chain() ends with None: put an optimizer last"),
        (lambda: optim.chain(optim.l2(1)), "chain() ends with l2(amount=1.0): put an optimizer last"),
        (
            lambda: optim.chain(optim.sgd(1), optim.sgd(1)),
            "chain() takes only one optimizer, and it stands last",
        ),
        (lambda: optim.chain(1.0, optim.sgd(1)), "before sgd() stands 1.0"),
        (lambda: optim.chain(optim.weight_decay(1), ELEMENTWISE["a user's"]), "or write l2(…)"),
        (lambda: optim.cosine(1.0, steps=0), "cosine(steps=0): give a whole number, 1 or more"),
        (lambda: optim.linear(1.0, -1.0, 5), "linear(end=-1.0)"),
        (lambda: optim.exponential(1.0, 1.5), "exponential(rate=1.5): give a number, above 0 and at most 1"),
        (lambda: optim.step(1.0, every=2.5), "step(every=2.5)"),
        (lambda: optim.polynomial(1.0, 5, power=0), "polynomial(power=0)"),
        (lambda: optim.one_cycle(1.0, 10, rise=1.0), "one_cycle(rise=1.0)"),
        (lambda: optim.warmup(5, then="cosine"), "warmup(then='cosine')"),
        (lambda: optim.lbfgs(0), "lbfgs(max_iterations=0)"),
        (lambda: optim.lbfgs(line_search="wolfe"), "Did you mean 'strong_wolfe'?"),
        (lambda: optim.newton(damping=-1), "newton(damping=-1)"),
    ],
)
def test_what_cannot_be_meant_is_told_at_once(make, says):
    with pytest.raises(ParameterError) as caught:
        make()
    assert says in str(caught.value)


def test_a_schedule_that_goes_wrong_names_the_step():
    optimizer = optim.sgd(lambda step: 1.0 - step)
    with pytest.raises(ParameterError, match="at step 2"):
        descend(optimizer, *problem(3, "float32"))


def test_updates_say_what_does_not_fit():
    optimizer, params = optim.adam(), {"weights": np.ones(3)}
    state = optimizer.init(params)
    with pytest.raises(ParameterError, match="Did you mean 'weight'"):
        optimizer.update({"weight": np.ones(3)}, state, params, 0)
    with pytest.raises(ParameterError, match=r"has shape \(1,\), its parameter \(3,\)"):
        optimizer.update({"weights": np.ones(1)}, state, params, 0)
    with pytest.raises(ParameterError, match="the state 'm' of 'weights' isn't there"):
        optimizer.update({"weights": np.ones(3)}, {}, params, 0)
    with pytest.raises(TypeMismatchError, match="is an array of int64"):
        optimizer.init({"weights": np.ones(3, int)})


def one_weight():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


LR = torch.optim.lr_scheduler
SCHEDULES = {
    "constant": (optim.constant(0.1), lambda o: LR.ConstantLR(o, factor=1.0)),
    "linear": (optim.linear(0.02, 0.07, 12), lambda o: LR.LinearLR(o, 0.2, 0.7, 12)),
    "cosine": (optim.cosine(0.1, 30, end=0.01), lambda o: LR.CosineAnnealingLR(o, 30, 0.01)),
    "exponential": (optim.exponential(0.1, 0.9), lambda o: LR.ExponentialLR(o, 0.9)),
    "step": (optim.step(0.1, 7, 0.3), lambda o: LR.StepLR(o, 7, 0.3)),
    "polynomial": (optim.polynomial(0.1, 20, power=1.7), lambda o: LR.PolynomialLR(o, 20, 1.7)),
    "one cycle": (optim.one_cycle(0.1, 31), lambda o: LR.OneCycleLR(o, 0.1, total_steps=31)),
    "one cycle, its parameters": (
        optim.one_cycle(0.1, 31, rise=0.45, start_divisor=10, end_divisor=100),
        lambda o: LR.OneCycleLR(o, 0.1, total_steps=31, pct_start=0.45, div_factor=10, final_div_factor=100),
    ),
    "warmup": (
        optim.warmup(5, then=optim.exponential(0.1, 0.9), start=0.01),
        lambda o: LR.SequentialLR(o, [LR.LinearLR(o, 0.1, 1.0, 5), LR.ExponentialLR(o, 0.9)], [5]),
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("ours", "theirs"), SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedules_are_pytorchs(ours, theirs):
    optimizer = one_weight()
    scheduler, rates = theirs(optimizer), []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [ours(step) for step in range(30)] == pytest.approx(rates, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", [s for s, _ in SCHEDULES.values()], ids=SCHEDULES.keys())
def test_schedules_are_small_records(schedule):
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert eval(repr(schedule), vars(optim)) == schedule
    assert {type(schedule(step)) for step in (0, 3, 1000)} == {float}


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (optim.linear(1.0, 0.25, 10), 0.25),
        (optim.cosine(1.0, 10, end=0.25), 0.25),
        (optim.polynomial(1.0, 10, end=0.25, power=2.0), 0.25),
        (optim.one_cycle(1.0, 10, start_divisor=2, end_divisor=2), 0.25),
        (optim.warmup(10, then=0.25), 0.25),
    ],
)
def test_schedules_stay_where_they_end(schedule, last):
    assert schedule(10) == schedule(11) == schedule(10**9) == last


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (
            optim.lbfgs(),
            {"max_iterations": 100, "history": 10, "tolerance": 1e-6, "line_search": "strong_wolfe"},
        ),
        (optim.newton(damping=0.1), {"max_iterations": 50, "tolerance": 1e-8, "damping": 0.1}),
    ],
)
def test_solvers_are_settings(solver, options):
    assert dict(solver.options) == options
    assert isinstance(solver, optim.Solver)
    assert pickle.loads(pickle.dumps(solver)) == eval(repr(solver), vars(optim)) == solver
    assert lineage_key("Train", solver.parameters(), []) != lineage_key(
        "Train", optim.newton().parameters(), []
    )
