"""Objectives: gradients are those of the losses, predictions are right, and what can't be learnt is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater.errors import ParameterError, SerializationError, TypeMismatchError, UserFunctionError
from headwater.lineage.keys import canonical
from headwater.ops.objectives import (
    MLP,
    FactorizationMachine,
    LinearRegression,
    LogisticRegression,
    Objective,
    SoftmaxRegression,
    Torch,
    custom,
)
from headwater.ops.training.local_shard import make_info
from headwater.ops.training.tree import pack, spec_of, unpack

ROWS, WIDTH = 40, 5


def data(task: str, weights: bool = False, dtype: str = "float64") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, WIDTH)).astype(dtype)
    y = {
        "regression": rng.normal(size=ROWS),
        "binary": rng.random(ROWS) < 0.5,
        "classes": rng.integers(0, 3, ROWS),
    }[task]
    return {"x": x, "y": y} | ({"weight": rng.random(ROWS)} if weights else {})


OBJECTIVES = [
    (LinearRegression(), "regression"),
    (LinearRegression(l1=0.1, l2=0.2, fit_intercept=False), "regression"),
    (LogisticRegression(l2=0.3), "binary"),
    (SoftmaxRegression(3, l1=0.1, l2=0.1), "classes"),
    (FactorizationMachine(3, l2=0.1, scale=0.5), "regression"),
    (FactorizationMachine(2, "binary", scale=0.5), "binary"),
    (MLP((4, 3), activation="tanh", l2=0.1), "regression"),
    (MLP((4,), "binary", activation="sigmoid"), "binary"),
    (MLP((6, 4), "classes", 3, activation="gelu"), "classes"),
    (MLP((6,), "classes", 3, activation="relu", dropout=0.4), "classes"),
    (MLP((), "regression"), "regression"),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("objective", "task"), OBJECTIVES, ids=[repr(o) for o, _ in OBJECTIVES])
def test_gradients_are_those_of_the_loss(objective, task, weighted):
    batch = data(task, weighted)
    info = make_info(batch, dtype="float64")
    tree = objective.init(info.rng(0), info)
    spec = spec_of(tree, "float64")
    vector = pack(tree, spec) + 0.1 * np.random.default_rng(1).normal(size=spec.size)

    def loss(at: np.ndarray) -> float:
        return objective.value_and_grad(unpack(at, spec), batch, info.rng(1))[0]

    _, grads, _ = objective.value_and_grad(unpack(vector, spec), batch, info.rng(1))
    step = 1e-6
    numeric = [
        (loss(vector + step * unit) - loss(vector - step * unit)) / (2 * step) for unit in np.eye(spec.size)
    ]
    np.testing.assert_allclose(pack(grads, spec), numeric, atol=1e-7)


@pytest.mark.parametrize(("objective", "task"), OBJECTIVES[:9], ids=[repr(o) for o, _ in OBJECTIVES[:9]])
def test_a_weight_of_two_is_a_row_twice(objective, task):
    batch = data(task)
    info = make_info(batch, dtype="float64")
    params = objective.init(info.rng(0), info)
    weight = np.random.default_rng(0).integers(0, 3, ROWS)
    weighted = objective.value_and_grad(params, {**batch, "weight": weight.astype(float)}, info.rng(1))
    repeated = objective.value_and_grad(
        params, {n: np.repeat(a, weight, 0) for n, a in batch.items()}, info.rng(1)
    )
    assert weighted[0] == pytest.approx(repeated[0])
    spec = spec_of(params, "float64")
    np.testing.assert_allclose(pack(weighted[1], spec), pack(repeated[1], spec), atol=1e-12)


@pytest.mark.parametrize(
    ("objective", "task"),
    [
        (LinearRegression(l2=0.2), "regression"),
        (LogisticRegression(fit_intercept=False), "binary"),
        (LogisticRegression(l2=0.1), "binary"),
        (SoftmaxRegression(3, l2=0.1), "classes"),
    ],
)
def test_hessian_is_the_derivative_of_the_gradient(objective, task):
    batch = data(task, weights=True)
    info = make_info(batch, dtype="float64")
    spec = spec_of(objective.init(info.rng(0), info), "float64")
    vector = np.random.default_rng(1).normal(size=spec.size)

    def gradient(at: np.ndarray) -> np.ndarray:
        return pack(objective.value_and_grad(unpack(at, spec), batch)[1], spec)

    step = 1e-6
    numeric = [
        (gradient(vector + step * u) - gradient(vector - step * u)) / (2 * step) for u in np.eye(spec.size)
    ]
    hessian = objective.hessian(unpack(vector, spec), batch)
    np.testing.assert_allclose(hessian, numeric, atol=1e-8)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-15)


def test_losses_stand_huge_predictors():
    batch = {"x": np.array([[1e4], [-1e4]], "float32"), "y": np.array([0, 1])}
    params = {"weights": np.array([1e3], "float32"), "intercept": np.zeros((), "float32")}
    loss, grads, _ = LogisticRegression().value_and_grad(params, batch)
    assert loss == pytest.approx(1e7)
    assert np.isfinite(grads["weights"]).all()
    wide = {"weights": np.array([[1e3, -1e3]], "float32"), "intercept": np.zeros(2, "float32")}
    loss, grads, _ = SoftmaxRegression(2).value_and_grad(wide, {**batch, "y": np.array([1, 0])})
    assert loss == pytest.approx(2e7)
    assert np.isfinite(grads["weights"]).all()


def test_the_factorization_machine_sums_over_pairs():
    batch = data("regression")
    machine = FactorizationMachine(3, scale=1.0)
    info = make_info(batch, dtype="float64")
    params = machine.init(info.rng(0), info)
    v = params["factors"]
    pairs = [
        sum(v[i] @ v[j] * row[i] * row[j] for i in range(WIDTH) for j in range(i + 1, WIDTH))
        for row in batch["x"]
    ]
    np.testing.assert_allclose(machine.predict(params, batch)["prediction"], pairs)


@pytest.mark.parametrize(("objective", "task"), OBJECTIVES, ids=[repr(o) for o, _ in OBJECTIVES])
def test_predictions_are_as_declared(objective, task):
    batch = data(task, dtype="float32")
    info = make_info(batch)
    predicted = objective.predict(objective.init(info.rng(0), info), {"x": batch["x"]})
    fields = objective.output(None)
    assert list(predicted) == [field.name for field in fields]
    for field in fields:
        values = predicted[field.name]
        assert len(values) == ROWS
        item = field.type.value_type if pa.types.is_fixed_size_list(field.type) else field.type
        assert values.dtype == item.to_pandas_dtype()
        if pa.types.is_fixed_size_list(field.type):
            assert values.shape == (ROWS, field.type.list_size)
            np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)


def test_validation_leaves_out_penalties_and_dropout():
    batch = data("classes")
    info = make_info(batch, dtype="float64")
    plain, penalized = MLP((6,), "classes", 3), MLP((6,), "classes", 3, dropout=0.5, l2=1.0)
    params = plain.init(info.rng(0), info)
    assert plain.value_and_grad(params, batch, info.rng(1))[0] == pytest.approx(
        penalized.loss(params, batch, info.rng(1))[0]
    )


# -- what can't be learnt, or isn't an objective --------------------------------------------------------------


def test_targets_that_nothing_can_be_learnt_from_are_refused():
    x = np.zeros((4, 2), "float32")
    with pytest.raises(ParameterError, match=r"LogisticRegression: the target is 1 in all 4 training rows"):
        LogisticRegression().check(make_info({"x": x, "y": np.ones(4)}))
    with pytest.raises(
        ParameterError, match=r"values go from 1 to 2, and must be False and True, or 0 and 1"
    ):
        LogisticRegression().check(make_info({"x": x, "y": np.array([1, 2, 1, 2])}))
    with pytest.raises(ParameterError, match=r"whole numbers, 0 to 2. There seem to be 5 classes"):
        SoftmaxRegression(3).check(make_info({"x": x, "y": np.array([0, 4, 1, 2])}))
    with pytest.raises(ParameterError, match=r"learns from a target\. Give target="):
        LinearRegression().check(make_info({"x": x}))
    with pytest.raises(ParameterError, match="no features"):
        LinearRegression().check(make_info({"x": x[:, :0], "y": np.ones(4)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearRegression(l2=-1), r"LinearRegression\(l2=-1\): a penalty is a number, 0 or more"),
        (lambda: SoftmaxRegression(1), r"SoftmaxRegression\(classes=1\)"),
        (lambda: MLP((3,), "class", 3), r"MLP\(task='class'\): Did you mean 'classes'"),
        (lambda: MLP((3,), "classes"), r"say how many classes, as classes=10"),
        (lambda: MLP((3,), "binary", 2), r"leave it out"),
        (lambda: MLP((3.5,)), r"widths of the hidden layers"),
        (lambda: MLP((3,), activation="rellu"), r"Did you mean 'relu'"),
        (lambda: MLP((3,), dropout=1), r"dropout=1"),
        (lambda: FactorizationMachine(0), r"rank=0"),
        (lambda: custom(1, 2), r"custom\(init=1\): give a function"),
        (lambda: custom(lambda r, i: 0, lambda p: 0), r"it is called as value_and_grad\(params, batch\)"),
    ],
)
def test_bad_parameters_are_told(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


def test_user_functions_are_in_the_lineage_key():
    def start(rng, info):
        return {"w": np.zeros(info.width)}

    def with_power(power):
        return custom(start, lambda params, batch: (abs(batch["y"] ** power).mean(), params))

    def key(objective: Objective) -> bytes:
        return canonical(objective.parameters())

    assert key(with_power(1)) == key(with_power(1))
    assert key(with_power(1)) != key(with_power(2))
    assert key(LinearRegression(l2=1)) != key(LinearRegression(l2=2))
    assert key(Torch(lambda: 1)) != key(Torch(lambda: 2))


def test_a_function_that_cannot_be_sent_is_named():
    import threading

    lock = threading.Lock()
    with pytest.raises(SerializationError, match="the captured variable 'lock'"):
        custom(lambda rng, info: {}, lambda params, batch: lock)


def test_a_third_argument_with_a_default_is_not_taken_for_the_generator():
    def value_and_grad(params, batch, power=2.0):
        return power, params

    found = custom(lambda rng, info: {}, value_and_grad)
    assert found.value_and_grad({}, {}, np.random.default_rng(0)) == (2.0, {}, {})
    seeded = custom(lambda rng, info: {}, lambda params, batch, rng: (rng.random(), params))
    assert 0 <= seeded.value_and_grad({}, {}, np.random.default_rng(0))[0] < 1


def test_without_predict_a_custom_objective_says_how_to_give_it():
    objective = custom(lambda rng, info: {}, lambda params, batch: (0.0, {}), name="mine")
    with pytest.raises(ParameterError, match=r"mine has no predict function"):
        objective.output()


def test_objectives_are_public():
    assert hw.objectives.LogisticRegression is LogisticRegression


# -- PyTorch ------------------------------------------------------------------------------------------------


def torch_info(task: str = "regression", dtype: str = "float32"):
    batch = data(task, dtype=dtype)
    return batch, make_info(batch, dtype=dtype)


@pytest.mark.parametrize("task", ["regression", "binary", "classes"])
def test_a_torch_module_has_the_gradients_of_the_same_mlp(task):
    pytest.importorskip("torch")
    classes = 3 if task == "classes" else None

    def build():
        from torch import nn

        return nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, classes or 1))

    batch, info = torch_info(task, "float64")
    module = Torch(build, output=task, classes=classes)
    perceptron = MLP((4,), task, classes, activation="tanh")
    params = module.init(info.rng(0), info)
    same = {"layers": [{"weights": params[f"{i}.weight"].T, "bias": params[f"{i}.bias"]} for i in (0, 2)]}
    loss, grads, _ = module.value_and_grad(params, batch, info.rng(1))
    ours, expected, _ = perceptron.value_and_grad(same, batch, info.rng(1))
    factor = 2 if task == "regression" else 1  # half the squared error here, all of it there
    assert loss == pytest.approx(factor * ours)
    for i, layer in zip((0, 2), expected["layers"]):
        np.testing.assert_allclose(grads[f"{i}.weight"], factor * layer["weights"].T, atol=1e-10)
        np.testing.assert_allclose(grads[f"{i}.bias"], factor * layer["bias"], atol=1e-10)
    for name, values in module.predict(params, batch).items():
        np.testing.assert_allclose(values, perceptron.predict(same, batch)[name], rtol=1e-5)


def test_torch_dropout_depends_on_the_given_generator_alone():
    torch = pytest.importorskip("torch")

    def build():
        from torch import nn

        return nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 1))

    batch, info = torch_info()
    module = Torch(build)
    params = module.init(info.rng(0), info)
    state = torch.get_rng_state()
    first = module.value_and_grad(params, batch, info.rng(7))
    torch.rand(3)
    again = module.value_and_grad(params, batch, info.rng(7))
    other = module.value_and_grad(params, batch, info.rng(8))
    assert first[0] == again[0] != other[0]
    np.testing.assert_array_equal(first[1]["1.weight"], again[1]["1.weight"])
    torch.set_rng_state(state)
    module.value_and_grad(params, batch, info.rng(7))
    assert torch.equal(torch.get_rng_state(), state)


def test_torch_starts_from_the_seed_and_leaves_parameters_alone():
    pytest.importorskip("torch")

    def build():
        from torch import nn

        return nn.Linear(WIDTH, 1)

    batch, info = torch_info()
    first, second = (Torch(build).init(info.rng(0), info) for _ in range(2))
    np.testing.assert_array_equal(first["weight"], second["weight"])
    assert not np.array_equal(first["weight"], Torch(build).init(info.rng(1), info)["weight"])
    Torch(build).value_and_grad(first, batch, info.rng(1))
    np.testing.assert_array_equal(first["weight"], second["weight"])


def test_torch_gives_the_same_bits_wherever_arrays_lie():
    pytest.importorskip("torch")

    def build():
        from torch import nn

        return nn.Sequential(nn.Linear(101, 13), nn.ReLU(), nn.Linear(13, 1))

    def moved(array: np.ndarray, by: int) -> np.ndarray:
        raw = np.empty(array.nbytes + 128, np.uint8)
        at = -raw.ctypes.data % 64 + by
        place = np.ndarray(array.shape, array.dtype, raw, at)
        place[...] = array
        return place

    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(77, 101)).astype("float32"), "y": rng.normal(size=77).astype("float32")}
    info = make_info(batch)
    module = Torch(build)
    params = module.init(info.rng(0), info)
    spec = spec_of(params, "float32")
    found = {
        pack(
            module.value_and_grad(
                unpack(moved(pack(params, spec), by), spec),
                {n: moved(a, by) for n, a in batch.items()},
                info.rng(1),
            )[1],
            spec,
        ).tobytes()
        for by in range(0, 64, 4)
    }
    assert len(found) == 1


def test_torch_weights_rows_by_losses_of_rows():
    pytest.importorskip("torch")

    def build():
        from torch import nn

        return nn.Linear(WIDTH, 1)

    batch, info = torch_info()
    weight = np.random.default_rng(0).integers(0, 3, ROWS)
    module = Torch(build)
    params = module.init(info.rng(0), info)
    weighted = module.value_and_grad(params, {**batch, "weight": weight.astype("float32")}, info.rng(1))
    repeated = module.value_and_grad(
        params, {n: np.repeat(a, weight, 0) for n, a in batch.items()}, info.rng(1)
    )
    assert weighted[0] == pytest.approx(repeated[0], rel=1e-5)
    mean = Torch(build, lambda output, target: ((output - target) ** 2).mean())
    with pytest.raises(ParameterError, match="reduction='none'"):
        mean.value_and_grad(params, {**batch, "weight": weight.astype("float32")}, info.rng(1))


def test_torch_gets_integers_as_indices_and_columns_by_name():
    pytest.importorskip("torch")

    def build():
        from torch import nn

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.linear = nn.Embedding(7, 2), nn.Linear(3, 1)

            def forward(self, item, price):
                import torch

                return self.linear(torch.cat([self.embedding(item), price[:, None]], 1))

        return Two()

    rng = np.random.default_rng(0)
    batch = {
        "item": rng.integers(0, 7, 9).astype("int32"),
        "price": rng.random(9, dtype="float32"),
        "y": rng.random(9),
    }
    info = make_info(batch)
    module = Torch(build, columns=("item", "price"))
    params = module.init(info.rng(0), info)
    _, grads, _ = module.value_and_grad(params, batch, info.rng(1))
    assert set(grads) == {"embedding.weight", "linear.weight", "linear.bias"}
    assert module.predict(params, batch)["prediction"].shape == (9,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda nn: nn.Linear(WIDTH, 2),
            TypeMismatchError,
            r"shape \(40, 2\), where output='regression' takes \(40,\)",
        ),
        (lambda nn: nn.Linear(3, 1), UserFunctionError, "mat1 and mat2"),
        (lambda nn: 5, UserFunctionError, "build returned a int, not a torch.nn.Module"),
        (lambda nn: nn.LazyLinear(1), ParameterError, "'weight' has no shape yet"),
        (lambda nn: nn.BatchNorm1d(WIDTH, momentum=None), ParameterError, "momentum=None"),
        (lambda nn: nn.ReLU(), ParameterError, "no parameters to train"),
    ],
)
def test_what_is_wrong_with_a_torch_module_is_told(make, error, message):
    pytest.importorskip("torch")
    from headwater.ops.training.local_shard import local_shards, run_locally
    from headwater.ops.training.program import Settings

    def build():
        from torch import nn

        return make(nn)

    batch, _ = torch_info()
    program = Torch(build).program(Settings(epochs=1))
    with pytest.raises(error, match=message):
        run_locally(program, local_shards(batch, make_info(batch, shards=1)), make_info(batch, shards=1))


def test_a_module_instead_of_a_function_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ParameterError, match="give a function that makes the module"):
        Torch(torch.nn.Linear(2, 1))


def test_a_fitted_module_predicts_the_same_without_headwater():
    torch = pytest.importorskip("torch")

    def build():
        from torch import nn

        return nn.Sequential(nn.Linear(WIDTH, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    batch, info = torch_info()
    module = Torch(build)
    params = module.init(info.rng(0), info)
    params["1.running_mean"] = params["1.running_mean"] + np.float32(0.5)
    with torch.no_grad():
        output = module.fitted(params)(torch.from_numpy(batch["x"]))[:, 0].numpy()
    np.testing.assert_allclose(module.predict(params, batch)["prediction"], output, rtol=1e-6)


def test_mixed_precision_computes_in_bfloat16_and_keeps_parameters_whole():
    def build():
        from torch import nn

        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)).astype(np.float32)
    batch = {"x": x, "y": (x[:, 0] > 0).astype(np.float32)}
    info = make_info(batch)
    half = Torch(build, output="binary", autocast="bfloat16")
    params = half.init(np.random.default_rng(1), info)
    loss, grads, _ = half.value_and_grad(params, batch, np.random.default_rng(2))
    exact, whole, _ = Torch(build, output="binary").value_and_grad(params, batch, np.random.default_rng(2))
    assert {array.dtype for array in grads.values()} == {np.dtype(np.float32)}
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.02)
    for name, grad in grads.items():
        assert np.abs(grad - whole[name]).max() <= 0.05 * np.abs(whole[name]).max() + 1e-3
    with pytest.raises(ParameterError, match="bfloat16"):
        Torch(build, autocast="bf16")
